"""What both explorers share: how a search goes, what it plays, and what comes out."""

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from racelab.reader_error import ReaderError

T = TypeVar("T")
Pick = Callable[[list[str]], str]  # what comes next, of the names on offer
# True or None: it holds. Anything else, or an AssertionError: it does not.
Invariant = Callable[[T], object]
# One pick for each run.
Strategy = Iterable[Pick]

MOST = 100_000  # runs, unless the caller asks for more


class LeftBehind(ReaderError):
    """A task cannot be stopped: it swallows each cancellation."""


class CannotReplay(ReaderError):
    """A schedule does not fit the code: it has changed since."""


class NotTheSame(ReaderError):
    """The same choices led to something else: the code under test is not repeatable."""


class Merged(Exception):
    """Raised by a `pick`: an earlier run has been here."""


@dataclass(frozen=True)
class Played:
    """How one run ended."""

    schedule: list[str]
    kind: str  # "" (it holds), invariant, exception, deadlock, livelock, merged
    says: str
    timeline: str


@dataclass(frozen=True)
class Report:
    """What came of a search: `print(report)`."""

    says: str
    runs: int
    exhausted: bool = False  # every order was tried
    kind: str = ""  # of failure: invariant, exception, deadlock, livelock
    failing: str | None = None  # the schedule: paste it into `replay`
    timeline: str = ""
    again: str = "replay(run, {!r}, ...)"

    @property
    def holds(self) -> bool:
        return not self.kind

    def __str__(self) -> str:
        if self.failing is None:
            return self.says
        again = self.again.format(self.failing)
        return "\n".join([self.says, self.timeline, again])


def every_order(is_new: Callable[[], bool] | None = None) -> Iterator[Pick]:
    """Depth-first: the last choice that has another name left takes that one."""
    path: list[tuple[list[str], int]] = []  # what was on offer, and which was picked
    depth = 0

    def pick(choices: list[str]) -> str:
        nonlocal depth
        if depth == len(path):
            if is_new is not None and not is_new():
                raise Merged
            path.append((choices, 0))
        offered, picked = path[depth]
        if offered != choices:
            raise _not_the_same(depth, offered, choices)
        depth += 1
        return choices[picked]

    while True:
        depth = 0
        yield pick
        if depth < len(path):
            raise _not_the_same(depth, path[depth][0], ["nothing"])
        while path and path[-1][1] + 1 == len(path[-1][0]):
            path.pop()
        if not path:
            return
        path[-1] = path[-1][0], path[-1][1] + 1


def random_orders(seed: int = 0) -> Iterator[Pick]:
    """Without end; the same for the same seed."""
    for number in itertools.count():
        yield random.Random(f"{seed}:{number}").choice


def _not_the_same(step: int, before: list[str], now: list[str]) -> NotTheSame:
    return NotTheSame(
        f"after {step} steps, {' '.join(before)} could come next, and now "
        f"{' '.join(now)}: the code under test does not do the same on each run "
        "(real time, unseeded randomness, state kept from run to run, order of a set)"
    )


def draw(agents: Sequence[str], notes: list[tuple[int, str, str]]) -> str:
    """The notes as scripts print them; steps are the places in the schedule."""
    who = list(dict.fromkeys([*agents, *(agent for _, agent, _ in notes)]))
    widths = {agent: len(agent) + 2 for agent in who}
    for _, agent, what in notes:
        widths[agent] = max(widths[agent], len(what) + 2)
    rows = [(" step", {agent: agent for agent in who})]
    rows += [(f"{step:5}", {agent: what}) for step, agent, what in notes]
    return "\n".join(
        f"{step}  {''.join(cells.get(a, '').ljust(widths[a]) for a in who)}".rstrip()
        for step, cells in rows
    )
