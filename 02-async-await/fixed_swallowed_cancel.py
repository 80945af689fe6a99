"""
A retry loop lets the cancel of the deadline pass, and no call is sent after it.

Run:   python fixed_swallowed_cancel.py
Next:  python broken_unbounded_fanout.py
Real:  https://github.com/langflow-ai/langflow/pull/6625
"""

import asyncio
from functools import partial

from openai import APIError, AsyncOpenAI

from racelab import Ask, Fault, Timeline, local_server, start, verdict

TOPICS = ("price", "law", "press", "support")
TRIES = 3
DEADLINE = 0.3  # seconds, for all topics together
TROUBLE = Fault("hang", calls=(2,))  # the first topic's call never gets an answer


async def ask_model(client: AsyncOpenAI, question: str) -> str:
    reply = await client.chat.completions.create(
        model="gpt-5.4-mini", messages=[{"role": "user", "content": question}]
    )
    return reply.choices[0].message.content or ""


async def insist(question: str, ask: Ask, timeline: Timeline) -> str:
    """Ask until there is an answer, but not more than TRIES times."""
    for _ in range(TRIES - 1):
        timeline.mark("scout", "asks")
        try:
            return await ask(question)
        except APIError as failure:  # the API's errors: a cancel is none
            timeline.mark("scout", type(failure).__name__)
    timeline.mark("scout", "asks")
    return await ask(question)


async def run(ask: Ask, timeline: Timeline) -> None:
    """Let the scout ask about every topic in turn, until the deadline."""
    await ask("Are you there?")  # opens the connection before the clock starts
    try:
        async with asyncio.timeout(DEADLINE):
            for topic in TOPICS:
                await insist(f"What is the risk in {topic}?", ask, timeline)
    except TimeoutError:
        timeline.mark("boss", "sees the timeout")
    else:
        timeline.mark("boss", "sees no timeout")


async def main() -> int:
    timeline = Timeline("scout", "boss")
    with local_server(latency=0.1, faults=[TROUBLE]) as server:
        async with AsyncOpenAI(
            base_url=server.base_url, api_key=server.api_key, max_retries=0, timeout=2
        ) as client:
            await run(partial(ask_model, client), timeline)
        calls = server.stats().received
        late = max(calls - 2, 0)  # the second one hung until the deadline
    print(timeline)
    return verdict(late == 0, f"sent {late} of {calls} calls after the deadline")


if __name__ == "__main__":
    start(main)
