"""Let many agents ask at once, time each call, and print the results as a table.

    load = await put_load(ask, agents=100, calls=2)
    assert load.answered == 200
    print(load.percentile(0.95))

A test adds its loads to the fixture `load_report`. pytest prints them at its end, and
draws them with `--chart FILE.svg`. `--long` makes the tests marked `load` longer.
"""

import asyncio
import time
import tracemalloc
from dataclasses import dataclass
from importlib.util import find_spec
from math import ceil, nan
from pathlib import Path

from racelab.model import Ask, Refused
from racelab.settings import Stats
from racelab.timeline import table

HEAD = ("load", "agents", "calls", "calls/s", "p50", "p95", "p99")
SEEN = ("lost", "refused", "in flight", "memory")  # by the server: refused, in flight
PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
INSTALL = "needs matplotlib: pip install -e './04-testing[charts]'"


@dataclass(frozen=True)
class Load:
    """What agents saw that asked at the same time."""

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

    `tracemalloc` slows the code down, so memory and time are measured in separate runs.
    """
    tracemalloc.start()
    try:
        await put_load(ask, agents, calls=1)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class LoadReport:
    """A table of loads, and a chart of how long their calls took."""

    def __init__(self) -> None:
        self.rows: list[tuple[object, ...]] = []
        self.times: dict[str, list[float]] = {}  # in ms, one for each of PERCENTILES

    def add(self, name: str, load: Load, stats: Stats, memory: int = 0) -> None:
        """Add the server's `stats`, and bytes of `memory` if they were counted."""
        times = [load.percentile(share) * 1000 for share in PERCENTILES.values()]
        self.times[f"{name}: {load.agents}"] = times
        self.rows.append(
            (
                *(name, load.agents, load.calls, f"{load.per_second:.0f}"),
                *(f"{milliseconds:.0f} ms" for milliseconds in times),
                load.calls - load.answered,
                sum(stats.refused.values()),
                stats.largest_in_flight,
                f"{memory / 1000:,.0f} kB" if memory else "",
            )
        )

    def __str__(self) -> str:
        return table((*HEAD, *SEEN), *self.rows)

    def draw(self, file: Path) -> None:
        """Draw the percentiles of each load as an SVG."""
        from matplotlib.figure import Figure  # not pyplot: no window, no global state

        figure = Figure(figsize=(9, 4.5), layout="constrained")
        axes = figure.add_subplot()
        for number, name in enumerate(PERCENTILES):
            places = [place + number / 4 for place in range(len(self.times))]
            heights = [times[number] for times in self.times.values()]
            axes.bar_label(axes.bar(places, heights, 1 / 4, label=name), fmt="%.3g")
        axes.set_xticks([n + 1 / 4 for n in range(len(self.times))], self.times)
        axes.set(title="Time of a call, by number of agents", ylabel="ms")
        axes.legend()
        figure.savefig(file, format="svg")


def why_not_to(file: Path) -> str | None:
    """Return why no chart can be drawn to `file`, or None if one can."""
    if file.suffix.lower() != ".svg":
        return "the name must end in .svg"
    if not file.parent.is_dir():
        return f"there is no folder {file.parent}"
    return None if find_spec("matplotlib") else INSTALL
