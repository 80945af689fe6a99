"""Load: many agents ask at once, and each call is timed. What came of it is a table.

    load = await put_load(ask, agents=100, calls=2)
    assert load.answered == 200
    print(load.percentile(0.95))

A test adds its loads to the fixture `load_report`. pytest prints them at its end, and
with `--chart FILE` draws them. `--load` makes the tests that are marked `load` longer.
"""

import asyncio
import time
import tracemalloc
from dataclasses import dataclass
from math import ceil, nan

from racelab.model import Ask, Refused
from racelab.pytest.chart import Chart
from racelab.settings import Stats
from racelab.timeline import table

HEAD = ("load", "agents", "calls", "calls/s", "p50", "p95", "p99")
SEEN = ("lost", "refused", "in flight", "memory")  # by the server: refused, in flight


@dataclass(frozen=True)
class Load:
    """What so many agents have seen, each of which made so many calls."""

    agents: int
    calls: int  # in all
    refused: int
    seconds: float
    times: tuple[float, ...]  # seconds of each answered call, the shortest first

    @property
    def answered(self) -> int:
        return len(self.times)

    @property
    def per_second(self) -> float:
        return self.answered / self.seconds

    def percentile(self, share: float) -> float:
        """This share of the answered calls took no longer; nan: there are none."""
        place = max(ceil(share * self.answered), 1) - 1
        return self.times[place] if self.times else nan


async def put_load(ask: Ask, agents: int, calls: int) -> Load:
    """Let `agents` ask at the same time, each `calls` times, one after another.

    A refusal is counted; any other failure ends the load and is raised.
    """
    times: list[float] = []
    refused = 0

    async def work(agent: int) -> None:
        nonlocal refused
        for call in range(calls):
            begin = time.perf_counter()
            try:
                await ask(f"Agent {agent}: what is risk number {call}?")
                times.append(time.perf_counter() - begin)
            except Refused:
                refused += 1

    begin = time.perf_counter()
    async with asyncio.TaskGroup() as team:
        for agent in range(agents):
            team.create_task(work(agent))
    seconds = time.perf_counter() - begin
    return Load(agents, agents * calls, refused, seconds, tuple(sorted(times)))


async def peak_memory(ask: Ask, agents: int) -> int:
    """Bytes that Python needs at most while `agents` ask at the same time, once each.

    Counting takes time: what is timed is not counted, and the other way round.
    """
    tracemalloc.start()
    try:
        await put_load(ask, agents, calls=1)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class LoadReport:
    """Rows of a table, and bars of a chart."""

    def __init__(self) -> None:
        self.rows: list[tuple[object, ...]] = []
        self.bars: dict[str, dict[str, float]] = {}

    def add(self, name: str, load: Load, stats: Stats, memory: int = 0) -> None:
        """`stats` of the server, and bytes of memory, if they were counted."""
        shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
        times = {word: load.percentile(share) * 1000 for word, share in shares.items()}
        self.bars[f"{name}: {load.agents}"] = times
        self.rows.append(
            (
                *(name, load.agents, load.calls, f"{load.per_second:.0f}"),
                *(f"{milliseconds:.0f} ms" for milliseconds in times.values()),
                load.calls - load.answered,
                sum(stats.refused.values()),
                stats.largest_in_flight,
                f"{memory / 1000:,.0f} kB" if memory else "",
            )
        )

    def __str__(self) -> str:
        return table((*HEAD, *SEEN), *self.rows)

    def chart(self) -> Chart:
        return Chart("Time of a call, by number of agents", "ms", self.bars)
