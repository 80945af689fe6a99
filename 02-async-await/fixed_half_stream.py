"""
The reader leaves a stream after five chunks, and the server stops at once.

Run:   python fixed_half_stream.py
Next:  python benchmark_sync_vs_async.py
Real:  https://github.com/BerriAI/litellm/pull/30245
"""

import asyncio

from openai import AsyncOpenAI

from racelab import LocalServer, Stats, Timeline, local_server, start, verdict

QUESTION = "Is our launch safe? Begin with yes or no, then give all of your reasons."
ENOUGH = 5  # chunks


async def run(client: AsyncOpenAI, server: LocalServer, timeline: Timeline) -> Stats:
    """Read the first chunks; give the server's counts when it has come to rest."""
    stream = await client.chat.completions.create(
        model="gpt-5.4-mini",
        messages=[{"role": "user", "content": QUESTION}],
        stream=True,
    )
    read = 0
    # `break` leaves the loop, and `async with` closes the stream: the server notices.
    async with stream:
        async for _chunk in stream:
            read += 1
            if read == ENOUGH:
                break
    timeline.mark("reader", f"leaves after {read}")
    stats = await rest_of_the_program(server)
    timeline.mark("server", f"has sent {stats.chunks_sent}")
    return stats


async def rest_of_the_program(server: LocalServer) -> Stats:
    """It lives on, as a web server would, until the model server has nothing to do."""
    stats = await asyncio.to_thread(server.stats)
    while stats.in_flight:  # another process cannot wake us: ask it again
        await asyncio.sleep(0.02)
        stats = await asyncio.to_thread(server.stats)
    return stats


async def main() -> int:
    timeline = Timeline("reader", "server")
    with local_server(chunk_delay=0.03) as server:
        url, key = server.base_url, server.api_key
        async with AsyncOpenAI(base_url=url, api_key=key) as client:
            stats = await run(client, server, timeline)
    print(timeline)
    late = stats.chunks_sent - ENOUGH
    few = late <= ENOUGH  # some can be on their way when we leave
    return verdict(few, f"sent {late} chunks after the {ENOUGH} that were read")


if __name__ == "__main__":
    start(main)
