"""What both explorers share: strategies, one execution, and the result of a search."""

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from racelab.reader_error import ReaderError

T = TypeVar("T")
Choose = Callable[[list[str]], str]  # returns the name that comes next
# True or None: it holds. Anything else, or an AssertionError: it does not.
Invariant = Callable[[T], object]
Strategy = Iterable[Choose]  # one `Choose` for each run

MAX_RUNS = 100_000  # unless the caller asks for more


class LeftBehind(ReaderError):
    """A task or thread cannot be stopped, because it swallows each cancellation."""


class CannotReplay(ReaderError):
    """A schedule does not fit the code. The code has changed since."""


class NotTheSame(ReaderError):
    """The same choices led to something else, so the code is not repeatable."""


class AlreadyVisited(Exception):
    """Raised by a `Choose` in a state that an earlier run has visited."""


@dataclass(frozen=True)
class Execution:
    """How one run of the code under test ended."""

    schedule: list[str]
    kind: str  # "" (it holds), invariant, exception, deadlock, livelock, visited
    message: str
    timeline: str


@dataclass(frozen=True)
class SearchResult:
    """What a search has found: `print(report)` shows it."""

    message: str
    runs: int
    exhausted: bool = False  # every order was tried
    kind: str = ""  # of failure: invariant, exception, deadlock, livelock
    failing: str | None = None  # the schedule: paste it into `replay`
    timeline: str = ""
    replay_call: str = "replay(run, {!r}, ...)"

    @property
    def holds(self) -> bool:
        return not self.kind

    def __str__(self) -> str:
        if self.failing is None:
            return self.message
        again = self.replay_call.format(self.failing)
        return "\n".join([self.message, self.timeline, again])


def every_order(is_new: Callable[[], bool] | None = None) -> Iterator[Choose]:
    """Search depth-first: the last choice that has another name left takes that one.

    A run stops where `is_new()` is false, because an earlier one has been there.
    """
    path: list[tuple[list[str], int]] = []  # the names on offer, and the chosen one
    depth = 0

    def choose(choices: list[str]) -> str:
        nonlocal depth
        if depth == len(path):
            if is_new is not None and not is_new():
                raise AlreadyVisited
            path.append((choices, 0))
        offered, chosen = path[depth]
        if offered != choices:
            raise _not_the_same(depth, offered, choices)
        depth += 1
        return choices[chosen]

    while True:
        depth = 0
        yield choose
        if depth < len(path):
            raise _not_the_same(depth, path[depth][0], ["nothing"])
        while path and path[-1][1] + 1 == len(path[-1][0]):
            path.pop()
        if not path:
            return
        path[-1] = path[-1][0], path[-1][1] + 1


def random_orders(seed: int = 0) -> Iterator[Choose]:
    """Choose at random, without end. The same seed chooses the same orders."""
    for number in itertools.count():
        yield random.Random(f"{seed}:{number}").choice


def _not_the_same(step: int, before: list[str], now: list[str]) -> NotTheSame:
    return NotTheSame(
        f"after {step} steps, {' '.join(before)} could come next, and now "
        f"{' '.join(now)}: the code under test does not do the same on each run "
        "(real time, unseeded randomness, state kept from run to run, order of a set)"
    )


def draw(agents: Sequence[str], notes: list[tuple[int, str, str]]) -> str:
    """Draw the notes as scripts print them. A step is a place in the schedule."""
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
