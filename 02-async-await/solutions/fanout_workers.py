"""
Exercise 1: forty calls on ten connections, made by ten workers, are all answered.

Run:   python solutions/fanout_workers.py
Next:  exercise 2
"""

import asyncio
from collections import Counter
from collections.abc import Iterator

from httpx2 import Limits
from openai import APITimeoutError, AsyncOpenAI, DefaultAsyncHttpxClient, Timeout

from racelab import local_server, start, table, verdict

CALLS, CONNECTIONS = 40, 10


async def ask(topic: int, client: AsyncOpenAI) -> str:
    """Give the fate of one call."""
    try:
        await client.chat.completions.create(
            model="gpt-5.4-mini",
            messages=[{"role": "user", "content": f"What is risk number {topic}?"}],
        )
    except APITimeoutError as error:
        return f"{error} ({type(error.__cause__).__name__})"
    return "answered"


async def work(topics: Iterator[int], client: AsyncOpenAI) -> Counter[str]:
    """Take the next topic until none is left; all workers take from the same ones."""
    fates: Counter[str] = Counter()
    for topic in topics:
        fates[await ask(topic, client)] += 1
    return fates


async def run(client: AsyncOpenAI) -> Counter[str]:
    """Ask everything with one worker per connection, and count the fates."""
    topics = iter(range(CALLS))  # it could be a file with a million lines
    team = (work(topics, client) for _ in range(CONNECTIONS))
    return sum(await asyncio.gather(*team), Counter())


async def main() -> int:
    with local_server(latency=0.2, spread=0) as server:
        async with AsyncOpenAI(
            base_url=server.base_url,
            api_key=server.api_key,
            max_retries=0,
            # 5 s for an answer, but only 20 ms of waiting for a free connection.
            timeout=Timeout(5, pool=0.02),
            http_client=DefaultAsyncHttpxClient(
                limits=Limits(max_connections=CONNECTIONS)
            ),
        ) as client:
            await client.models.list()  # warm up: the first request is slow to start
            fates = await run(client)
        seen = server.stats().received
    print(table(("what the calls said", "calls"), *sorted(fates.items())))
    return verdict(seen == CALLS, f"the server saw {seen} of {CALLS} calls")


if __name__ == "__main__":
    start(main)
