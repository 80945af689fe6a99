"""
A timeout of 0.25 s gives up after two seconds, and after three requests.

Run:   python broken_timeout.py
Next:  python fixed_timeout.py
Real:  https://github.com/openai/openai-python/issues/3828
       https://github.com/openai/openai-python/issues/762
"""

import asyncio
from functools import partial

from openai import APITimeoutError, AsyncOpenAI

from racelab import Ask, Fault, LocalServer, local_server, start, table, verdict

ANSWER_TIMEOUT = 0.25  # seconds that we want to wait for the answer, and no more
SILENCE = Fault("hang", probability=1)  # no request ever gets an answer


def openai_client(server: LocalServer) -> AsyncOpenAI:
    url, key = server.base_url, server.api_key
    # So long for each try, and the SDK makes three, with pauses in between.
    # (By default it is 600 s for each; with None it is for ever.)
    return AsyncOpenAI(base_url=url, api_key=key, timeout=ANSWER_TIMEOUT)


async def ask_model(client: AsyncOpenAI, question: str) -> str:
    reply = await client.chat.completions.create(
        model="gpt-5.4-mini", messages=[{"role": "user", "content": question}]
    )
    return reply.choices[0].message.content or ""


async def run(ask: Ask) -> tuple[str, float]:
    """Ask once; give what came of it, and when: seconds after the question."""
    clock = asyncio.get_running_loop().time
    asked = clock()
    try:
        await ask("What could go wrong?")
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
    return verdict(sent <= 1, f"the server was asked {sent}x for 1 question")


if __name__ == "__main__":
    start(main)
