"""
Three tries, and the SDK makes none of its own: no question costs more than three.

Run:   python fixed_retry_multiplied.py
Next:  python broken_semaphore_is_not_a_rate.py
Real:  https://github.com/livekit/agents/pull/5335
"""

import asyncio
from collections.abc import Callable
from functools import partial

from openai import APIError, AsyncOpenAI

from racelab import Ask, Fault, LocalServer, local_server, start, table, verdict

TOPICS = ("price", "law", "press", "support")
TRIES = 3  # a question may cost so many requests, and no more
PAUSE = 0.05  # seconds between two tries
# Two of the four are in trouble: every request about them is refused.
TROUBLE = (
    Fault("503", question="law", retry_after=0.01),
    Fault("429", question="press", retry_after=0.01),
)
Row = tuple[str, int, int]  # topic, tries that we made, requests that the server saw


def openai_client(server: LocalServer) -> AsyncOpenAI:
    url, key = server.base_url, server.api_key
    # One call is one request. Retries have one place, `insist`: there they are counted.
    return AsyncOpenAI(base_url=url, api_key=key, max_retries=0)


async def ask_model(client: AsyncOpenAI, question: str) -> str:
    reply = await client.chat.completions.create(
        model="gpt-5.4-mini", messages=[{"role": "user", "content": question}]
    )
    return reply.choices[0].message.content or ""


async def insist(question: str, ask: Ask) -> int:
    """Ask until there is an answer, TRIES times at most; give how often we asked."""
    tries = 0
    while tries < TRIES:
        tries += 1
        try:
            await ask(question)
            break
        except APIError:
            await asyncio.sleep(PAUSE)
    return tries


async def run(ask: Ask, received: Callable[[], int]) -> list[Row]:
    """Ask about one topic after another, so that we know whose requests these are."""
    rows = []
    for topic in TOPICS:
        before = received()
        tries = await insist(f"What is the risk in {topic}?", ask)
        rows.append((topic, tries, received() - before))
    return rows


async def main() -> int:
    with local_server(latency=0.02, faults=TROUBLE) as server:
        async with openai_client(server) as client:
            ask = partial(ask_model, client)
            rows = await run(ask, lambda: server.stats().received)
    print(table(("topic", "our tries", "requests"), *rows))
    most = max(requests for _, _, requests in rows)
    return verdict(most <= TRIES, f"up to {most} requests for {TRIES} tries")


if __name__ == "__main__":
    start(main)
