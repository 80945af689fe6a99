"""
Agents that wait at the same time are done in the time of one.

Run:   python benchmark_sequential_vs_parallel.py
Next:  ../02-async-await/README.md
"""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable

from racelab import Ask, local_server, open_model, result, start, table

LATENCY = 0.05  # seconds: each answer takes exactly this long at the server
TEAMS = (1, 2, 4, 8, 16)
CHAIN = 8
REPEATS = 3
Schedule = Callable[[int, Ask], Awaitable[None]]


async def one_at_a_time(agents: int, ask: Ask) -> None:
    for agent in range(agents):
        await ask(f"You are agent {agent}. Name one risk of our launch.")


async def together(agents: int, ask: Ask) -> None:
    questions = (
        f"You are agent {n}. Name one risk of our launch." for n in range(agents)
    )
    await asyncio.gather(*(ask(question) for question in questions))


async def in_a_chain(agents: int, ask: Ask) -> None:
    """All start together, but each needs the answer of the one before."""
    answer = asyncio.create_task(ask("Draft our launch plan."))
    for agent in range(1, agents):
        answer = asyncio.create_task(improve(agent, answer, ask))
    await answer


async def improve(agent: int, draft: asyncio.Task[str], ask: Ask) -> str:
    return await ask(f"You are agent {agent}. Improve this: {(await draft)[:40]}")


async def seconds(way: Schedule, agents: int, ask: Ask) -> float:
    """The median of a few runs."""
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        await way(agents, ask)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


async def compare(way: Schedule, agents: int, ask: Ask) -> tuple[float, float]:
    """Seconds for these agents one at a time, and for the same ones in `way`."""
    return await seconds(one_at_a_time, agents, ask), await seconds(way, agents, ask)


def row(name: str, agents: int, alone: float, team: float) -> tuple[str, ...]:
    speed_up = alone / team
    times = (f"{alone * 1000:.0f} ms", f"{team * 1000:.0f} ms")
    return name, *times, f"{speed_up:.1f}x", f"{speed_up / agents:.0%}"


async def main() -> int:
    rows = [("agents", "one at a time", "together", "speed-up", "of the ideal")]
    with local_server(latency=LATENCY, spread=0) as server:
        async with open_model(server) as ask:
            await together(max(TEAMS), ask)  # warm up: imports, connections
            for agents in TEAMS:
                alone, team = await compare(together, agents, ask)
                rows.append(row(str(agents), agents, alone, team))
            chained = await compare(in_a_chain, CHAIN, ask)
    print(table(*rows, row(f"{CHAIN} in a chain", CHAIN, *chained)))
    return result(
        f"{agents} agents together are {alone / team:.1f}x as fast as in turn"
    )


if __name__ == "__main__":
    start(main)
