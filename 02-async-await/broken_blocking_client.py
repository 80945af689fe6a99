"""
Five agents inside `async def`, and the loop stands still for the time of five calls.

Run:   python broken_blocking_client.py
Next:  python fixed_blocking_client.py, then python fixed_blocking_client_to_thread.py
Real:  https://github.com/aden-hive/hive/issues/4854
"""

import asyncio
import time
from itertools import pairwise

from openai import OpenAI

from racelab import Timeline, local_server, start, verdict

AGENTS = ("tester", "critic", "lawyer", "scout", "seller")
Span = tuple[float, float]  # from, until: seconds of the clock


async def research(agent: str, client: OpenAI, timeline: Timeline) -> Span:
    """Ask one question; give when it was asked, and when answered."""
    begin = time.perf_counter()
    timeline.mark(agent, "asks")
    # No await here: until the answer is there, nobody else runs.
    client.chat.completions.create(
        model="gpt-5.4-mini",
        messages=[
            {"role": "user", "content": f"You are the {agent}. What could go wrong?"}
        ],
    )
    timeline.mark(agent, "answered")
    return begin, time.perf_counter()


async def beat(beats: list[float]) -> None:
    """What else your program does: its timeouts, its progress bar, its other users."""
    while True:
        beats.append(time.perf_counter())
        await asyncio.sleep(0.01)


async def run(client: OpenAI, timeline: Timeline) -> tuple[int, float, float]:
    """Let all agents research; give beats meanwhile, the longest pause, the time."""
    beats: list[float] = []
    heart = asyncio.create_task(beat(beats))
    spans = await asyncio.gather(*(research(a, client, timeline) for a in AGENTS))
    heart.cancel()
    begin, end = min(first for first, _ in spans), max(last for _, last in spans)
    meanwhile = [moment for moment in beats if begin < moment < end]
    pauses = pairwise([begin, *meanwhile, end])
    return len(meanwhile), max(after - before for before, after in pauses), end - begin


async def main() -> int:
    timeline = Timeline(*AGENTS)
    with local_server(latency=0.2, spread=0.7) as server:
        url, key = server.base_url, server.api_key
        with OpenAI(base_url=url, api_key=key) as client:
            # The first call of a process is slow: the SDK loads its parts then.
            await research("tester", client, Timeline("tester"))
            meanwhile, pause, seconds = await run(client, timeline)
    print(timeline)
    return verdict(
        meanwhile > 0,
        f"for {pause * 1000:.0f} ms of {seconds * 1000:.0f} ms the loop stood still",
    )


if __name__ == "__main__":
    start(main)
