"""Finders of races: once, stress, random orders, PCT, few preemptions, every order.

A finder is called with a bug of `bugs.py`, a side of it ("broken" or "fixed") and the
number of orders that it may draw. It returns the run that fails, by the bug's own
invariant.
"""

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from typing import Any

from racelab import Ask
from racelab.explore import answer_orders, clock, threads
from racelab.explore.search import Choose, SearchResult, every_order, random_orders
from racelab.explore.threads import ThreadScheduler

CHANGES = 2  # of priorities in one run (PCT)
PREEMPTIONS = 2
Found = int | str | None  # the run that fails, None, or why it cannot tell
Finder = Callable[[Any, str, int], Found]  # bug, side, runs


def with_tasks(bug: Any, side: str, seen: list[Any]) -> Callable[[Ask], Any]:
    """Return `run(ask)` for `explore`. The shared state of a run is put into `seen`."""

    async def run(ask: Ask) -> Any:
        seen[:] = [state := bug(asyncio.Lock)]
        async with asyncio.TaskGroup() as tasks:
            for agent in bug.agents:
                work = getattr(state, side)(agent, ask)
                tasks.create_task(work, name=agent)
        return state

    return run


def with_threads(bug: Any, side: str) -> Callable[[ThreadScheduler], Any]:
    """Return `run(scheduler)` for `racelab.explore.threads`."""

    def run(scheduler: ThreadScheduler) -> Any:
        state = bug(scheduler.Lock)
        for agent in bug.agents:
            scheduler.start(agent, getattr(state, side), agent, scheduler.ask)
        scheduler.join()
        return state

    return run


def one_run(bug: Any, side: str, runs: int) -> Found:
    """Run once, with answers that all take the same time."""
    return stress(bug, side, 1, longest=0)


def stress(bug: Any, side: str, runs: int, longest: float = 1) -> Found:
    """Run often, with answers that come after a random time."""
    dice = random.Random(0)
    run = with_tasks(bug, side, [])

    async def ask(question: str) -> str:
        await asyncio.sleep(longest * dice.random())  # in virtual time
        return question

    with asyncio.Runner(loop_factory=clock.VirtualLoop) as runner:
        for number in range(1, runs + 1):
            try:
                if bug.in_threads:
                    state = in_real_threads(bug, side, longest / 5_000, dice)
                else:
                    state = runner.run(run(ask))
            except (clock.Stuck, RuntimeError):  # a deadlock; a changed dict
                return number
            if not state.holds():
                return number
    return None


def in_real_threads(bug: Any, side: str, longest: float, dice: random.Random) -> Any:
    state, calls = bug(threading.Lock), []
    with ThreadPoolExecutor() as pool:
        for agent in bug.agents:
            pause = partial(time.sleep, longest * dice.random())
            work = partial(getattr(state, side), agent, lambda _, pause=pause: pause())
            calls.append(pool.submit(work))
    for call in calls:
        call.result()
    return state


def explored(bug: Any, side: str, **options: Any) -> SearchResult:
    """Search with racelab, for tasks or threads: every order, or as the options say."""
    if bug.in_threads:
        run = with_threads(bug, side)
        return threads.explore(run, bug.holds, **{"preemptions": None, **options})
    seen: list[Any] = []
    if bug.merges and options.pop("merge", side == "fixed" and not options):
        options["state"] = lambda: repr(seen[0])
    if most := options.pop("preemptions", None):
        options["strategy"] = few_preemptions(most)
    return answer_orders.explore(with_tasks(bug, side, seen), bug.holds, **options)


def search(bug: Any, side: str, runs: int, **options: Any) -> Found:
    if "draw" in options:
        options = {"strategy": options["draw"](), "runs": runs}
    report = explored(bug, side, **options)
    return None if report.holds else report.runs


class Ranked:
    """A choice by PCT: the highest rank goes on, and becomes the lowest at each change.

    Burckhardt and others, "A Randomized Scheduler with Probabilistic Guarantees of
    Finding Bugs", ASPLOS 2010.
    """

    def __init__(self, dice: random.Random, length: int) -> None:
        self.dice, self.ranks, self.steps = dice, dict[str, float](), 0
        self.changes = {dice.randint(1, length) for _ in range(CHANGES)}

    def __call__(self, choices: list[str]) -> str:
        self.steps += 1
        for choice in choices:
            self.ranks.setdefault(agent_of(choice), self.dice.random())
        if self.steps in self.changes:
            self.ranks[agent_of(self.highest(choices))] = -self.steps
        return self.highest(choices)

    def highest(self, choices: list[str]) -> str:
        return max(choices, key=lambda choice: self.ranks[agent_of(choice)])


def pct() -> Iterator[Choose]:
    longest = 1  # run so far, in steps
    for number in count():
        yield (choose := Ranked(random.Random(f"pct {number}"), longest))
        longest = max(longest, choose.steps)


class Bounded:
    """A choice that lets an agent go on while it can, but for a few preemptions.

    As in CHESS. `racelab.explore.threads` does it by itself. For tasks it is done here.
    """

    def __init__(self, choose: Choose, left: int) -> None:
        self.choose, self.left, self.last = choose, left, ""

    def __call__(self, choices: list[str]) -> str:
        going_on = [choice for choice in choices if agent_of(choice) == self.last]
        others = [choice for choice in choices if choice not in going_on]
        chosen = self.choose(going_on + (others if self.left or not going_on else []))
        self.left -= bool(going_on) and chosen in others
        self.last = agent_of(chosen)
        return chosen


def few_preemptions(most: int) -> Iterator[Choose]:
    for bound in range(most + 1):
        for choose in every_order():
            yield Bounded(choose, bound)


def agent_of(choice: str) -> str:
    return choice.rpartition("#")[0]


def frontrun(bug: Any, side: str, runs: int) -> Found:
    """Search as https://pypi.org/project/frontrun/ does by default."""
    import frontrun

    states = []

    async def ask(question: str) -> str:
        await asyncio.sleep(0)
        return question

    def worker(agent: str) -> Callable[[Any], Any]:
        if bug.in_threads:
            return lambda state: getattr(state, side)(agent, str)

        async def work(state: Any) -> None:
            await getattr(state, side)(agent, ask)

        return work

    def setup() -> Any:  # frontrun puts its own locks in place of these
        states.append(bug(threading.Lock if bug.in_threads else asyncio.Lock))
        return states[-1]

    workers = [worker(agent) for agent in bug.agents]
    try:
        report = frontrun.explore(setup, workers, bug.holds)
        report = asyncio.run(report) if asyncio.iscoroutine(report) else report
    except RuntimeError:  # a changed dict
        return len(states)
    except BaseException as error:
        if type(error).__name__ != "Skipped":  # pytest's
            raise
        return "skipped"
    if report.property_holds is None:
        return "unsure"
    return None if report.property_holds else report.num_explored


FINDERS: dict[str, Finder] = {
    "one run": one_run,
    "stress": stress,
    "random": partial(search, draw=random_orders),
    "PCT": partial(search, draw=pct),
    f"{PREEMPTIONS} preemptions": partial(search, preemptions=PREEMPTIONS),
    "every order": search,
}
