"""
Exercise: the first request hangs, and a second try is answered within one deadline.

Run:   python solutions/timeout_with_a_second_try.py
Next:  the next exercise
"""

import asyncio
import contextlib
from functools import partial

from openai import APITimeoutError, AsyncOpenAI

from racelab import Ask, Fault, LocalServer, local_server, start, table, verdict

ANSWER_TIMEOUT = 2.0  # seconds that we want to wait for the answer, and no more
TRIES, TRY_TIMEOUT = 3, 0.25  # how many within that time, and seconds for each
SILENCE = Fault("hang", calls=(1,))  # the first request never gets an answer


def openai_client(server: LocalServer) -> AsyncOpenAI:
    url, key = server.base_url, server.api_key
    return AsyncOpenAI(base_url=url, api_key=key, timeout=TRY_TIMEOUT, max_retries=0)


async def ask_model(client: AsyncOpenAI, question: str) -> str:
    reply = await client.chat.completions.create(
        model="gpt-5.4-mini", messages=[{"role": "user", "content": question}]
    )
    return reply.choices[0].message.content or ""


async def insist(question: str, ask: Ask) -> str:
    """Ask again after each try that took too long. The deadline is the caller's."""
    for _ in range(TRIES - 1):
        with contextlib.suppress(APITimeoutError):  # a cancel passes, as it must
            return await ask(question)
    return await ask(question)


async def run(ask: Ask) -> tuple[str, float]:
    """Ask once; give what came of it, and when: seconds after the question."""
    clock = asyncio.get_running_loop().time
    asked = clock()
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            await insist("What could go wrong?", ask)
        fate = "answered"
    except (APITimeoutError, TimeoutError) as error:
        fate = type(error).__name__
    return fate, clock() - asked


async def main() -> int:
    with local_server(faults=(SILENCE,)) as server:
        async with openai_client(server) as client:
            await client.models.list()  # warm up: the first request is slow to start
            fate, seconds = await run(partial(ask_model, client))
        arrivals = server.stats().arrivals
    rows = [
        (f"request {number}", f"{1000 * (moment - arrivals[0]):.0f} ms")
        for number, moment in enumerate(arrivals, 1)
    ]
    print(table(*rows, (fate, f"{1000 * seconds:.0f} ms")))
    sent = len(arrivals)
    holds = fate == "answered" and sent <= TRIES
    return verdict(holds, f"the server was asked {sent}x for 1 question")


if __name__ == "__main__":
    start(main)
