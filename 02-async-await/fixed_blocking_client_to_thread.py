"""
Five agents block five threads, and the loop never stands still for a call.

Run:   python fixed_blocking_client_to_thread.py
Next:  python broken_client_per_call.py
Real:  https://github.com/aden-hive/hive/issues/4854
"""

import asyncio
import time
from itertools import pairwise

from openai import OpenAI

from racelab import Timeline, local_server, start, verdict

AGENTS = ("tester", "critic", "lawyer", "scout", "seller")


async def research(agent: str, client: OpenAI, timeline: Timeline) -> float:
    """Ask one question; give the seconds that its answer took."""
    begin = time.perf_counter()
    timeline.mark(agent, "asks")
    # A thread waits for the answer; here the others and the heart run.
    await asyncio.to_thread(
        client.chat.completions.create,
        model="gpt-5.4-mini",
        messages=[
            {"role": "user", "content": f"You are the {agent}. What could go wrong?"}
        ],
    )
    timeline.mark(agent, "answered")
    return time.perf_counter() - begin


async def beat(beats: list[float]) -> None:
    """What else your program does: its timeouts, its progress bar, its other users."""
    while True:
        beats.append(time.perf_counter())
        await asyncio.sleep(0.01)


async def run(client: OpenAI, timeline: Timeline) -> tuple[float, float]:
    """Let all agents research; give the longest standstill and the slowest call."""
    beats: list[float] = []
    heart = asyncio.create_task(beat(beats))
    team = (research(agent, client, timeline) for agent in AGENTS)
    slowest = max(await asyncio.gather(*team))
    heart.cancel()
    moments = [*beats, time.perf_counter()]
    return max(after - before for before, after in pairwise(moments)), slowest


async def main() -> int:
    timeline = Timeline(*AGENTS)
    with local_server(latency=0.2, spread=0.7) as server:
        url, key = server.base_url, server.api_key
        with OpenAI(base_url=url, api_key=key) as client:
            # The first call of a process is slow: the SDK loads its parts then.
            await research("tester", client, Timeline("tester"))
            still, slowest = await run(client, timeline)
    print(timeline)
    return verdict(
        still < slowest,
        f"the loop stood still for {still * 1000:.0f} ms, "
        f"the slowest call took {slowest * 1000:.0f} ms",
    )


if __name__ == "__main__":
    start(main)
