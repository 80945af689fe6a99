"""Every order in which answers can arrive: find the race, replay it, prove the fix.

    from racelab.explore import explore, replay

    report = explore(run, lambda findings: len(findings) == 2)
    print(report)          # all 6 orders hold, or the order that fails, drawn
    replay(run, report.failing, ...)  # the line of names that fails, once more

What differs from run to run in a team of agents is the order of the answers, because
asyncio does everything else the same way every time. So you write `run(ask)`, and the
calls of its `ask` wait, on a stock event loop in virtual time. When no task can run, a
strategy chooses what comes next: one of the answers that are waited for, or the next
timer. If there is neither, that is a deadlock.

A schedule is a line of names, `scout#1 critic#1 scout#2`: first the scout's first call
is answered, then the critic's, and so on. `clock#1` is the first timer that goes off.
An agent is the one of `agents` that the question names, if it names just one. Else it
is the task: the name that your code gave it, or that of its coroutine with a number,
`research-1`, in the order in which the tasks were created.

Options of `explore` and `replay`:

- `agents`: call `run(ask, timeline)` as a script does, with a timeline of these agents:
  `explore(script.run, check, agents=script.AGENTS)`.
- `answer`: a function from the question to the answer. `ask` raises what it raises.
- `max_timer_delay`: timers that may go off before an answer comes (4). Without a
  bound, a heartbeat would beat for ever.
- `max_steps`: more answers and timers than this (1000) in one run are a livelock.
- `permute_ready_queue`: any task that can run may be next, not only the first in line.
  That finds windows made of `sleep(0)` alone, but it can also flag code that relies on
  first in, first out.

Your code must do the same thing in the same order on each run: no real time, unseeded
randomness, or order of a set (`asyncio.wait` returns sets, and `asyncio.as_completed`
starts coroutines, not tasks, in the order of one). `NotTheSame` shows what differs.
Sockets, threads and processes raise `CannotControl`: inject a fake instead.
"""

import functools
import inspect
import itertools
from collections.abc import Callable, Coroutine, Hashable, Iterable, Sequence
from typing import Any, TypedDict, TypeVar, Unpack

from racelab.explore.controlled_loop import ControlledLoop
from racelab.explore.search import (
    MAX_RUNS,
    CannotReplay,
    Choose,
    Execution,
    Invariant,
    NotTheSame,
    SearchResult,
    Strategy,
    every_order,
)

T = TypeVar("T")
Program = Callable[..., Coroutine[Any, Any, T]]

SHORTENING_RUNS = 300  # at most, to shorten a schedule
MAY_BE_FALSE = (
    " (permute_ready_queue=True: code may rely on first in, first out, and fail here "
    "without fault)"
)


class ExploreOptions(TypedDict, total=False):
    agents: Sequence[str]
    answer: Callable[[str], str]
    max_timer_delay: int
    max_steps: int
    permute_ready_queue: bool


def explore(
    run: Program[T],
    invariant: Invariant[T] | None = None,
    *,
    strategy: Strategy | None = None,
    runs: int = MAX_RUNS,
    state: Callable[[], Hashable] | None = None,
    **options: Unpack[ExploreOptions],
) -> SearchResult:
    """Run `run(ask)` in one order after another, until one fails.

    Without a `strategy`, try every order, depth-first. `state` lets the search skip
    orders that lead to the same state: a function that returns all data on which the
    rest of a run depends, locals included. Where each task waits is added to it. The
    search is blind to what `state` leaves out.
    """
    if strategy is not None and state is not None:
        raise ValueError("state: only the search of every order can merge states")
    loop, seen = ControlledLoop(run, invariant, **options), set[Hashable]()

    def is_new() -> bool:
        """Return whether no run was in this state before."""
        before = len(seen)
        seen.add(loop.state(state() if state else None))
        return len(seen) > before

    orders = every_order(is_new if state else None) if strategy is None else strategy
    tried, exhausted = 0, strategy is None
    with loop.only_asyncio():
        for choose in orders:
            if tried == runs:
                exhausted = False
                break
            execution, tried = loop.execute(choose), tried + 1
            if execution.kind not in ("", "visited"):
                return _failure(loop, execution, tried)
    return SearchResult(_claim(loop, tried, exhausted, bool(state)), tried, exhausted)


def replay(
    run: Program[T],
    schedule: str,
    invariant: Invariant[T] | None = None,
    **options: Unpack[ExploreOptions],
) -> SearchResult:
    """Run `run(ask)` in the order of `schedule`, and then first in, first out.

    Raises `CannotReplay` if a name is not on offer when its turn comes.
    """
    loop = ControlledLoop(run, invariant, **options)
    with loop.only_asyncio():
        execution = loop.execute(follow(schedule.split()), record=True)
    failing = schedule if execution.kind else None
    message = execution.message or "it holds in this order"
    kind, timeline = execution.kind, execution.timeline
    return SearchResult(message, 1, False, kind, failing, timeline)


def for_every_order(*test: Any, **arguments: Any) -> Any:
    """Make an async test `test(ask, ...)` one that holds for every order of answers.

        @for_every_order
        async def test_all_findings_are_kept(ask):
            assert len(await research(ask)) == 5

    Arguments in parentheses are those of `explore`. Other parameters are fixtures.
    """
    if not test:
        return functools.partial(for_every_order, **arguments)

    @functools.wraps(test[0])
    def check(**fixtures: Any) -> None:
        __tracebackhide__ = True  # pytest shows the report, not these lines
        report = explore(functools.partial(test[0], **fixtures), **arguments)
        if not report.holds:
            raise AssertionError(str(report))

    given = 2 if arguments.get("agents") else 1  # ask, and the timeline
    signature = inspect.signature(test[0])
    parameters = list(signature.parameters.values())[given:]
    vars(check)["__signature__"] = signature.replace(parameters=parameters)
    return check


def follow(schedule: Iterable[str], strict: bool = True) -> Choose:
    """Choose these names, and then first in, first out.

    A name that is not on offer raises `CannotReplay`. If not `strict`, it waits for its
    turn.
    """
    names = list(schedule)

    def choose(choices: list[str]) -> str:
        if names and names[0] in choices:
            return names.pop(0)
        if names and strict:
            on_offer = " ".join(choices)
            raise CannotReplay(f"{names[0]} is not on offer here, only: {on_offer}")
        return choices[0]

    return choose


# What comes out


def _failure(loop: ControlledLoop, execution: Execution, tried: int) -> SearchResult:
    names = _shortened(loop, execution)
    again = loop.execute(follow(names), record=True)
    schedule = " ".join(names)
    if again.kind != execution.kind:
        raise NotTheSame(f"{schedule}: {execution.kind}, then {again.kind or 'fine'}")
    message = again.message + (MAY_BE_FALSE if loop.permute_ready_queue else "")
    return SearchResult(message, tried, False, again.kind, schedule, again.timeline)


def _shortened(loop: ControlledLoop, execution: Execution) -> list[str]:
    """Return the shortest schedule found that ends in the same kind of failure."""
    tries = itertools.count()

    def failing(names: list[str]) -> list[str]:
        """Return what runs if we follow `names` as far as we can; [] if it holds."""
        if next(tries) >= SHORTENING_RUNS:
            return []
        again = loop.execute(follow(names, strict=False))
        return again.schedule if again.kind == execution.kind else []

    def beginning(names: list[str]) -> list[str]:
        """Drop the end of a failing schedule that is first in, first out anyway."""
        lengths = range(1, len(names))
        return next((names[:n] for n in lengths if failing(names[:n])), names)

    best, place = beginning(execution.schedule), 0
    while place < len(best):
        less = failing(best[:place] + best[place + 1 :])
        shorter = beginning(less)
        if less and len(shorter) < len(best):
            best, place = shorter, 0
        else:
            place += 1
    return best


def _claim(loop: ControlledLoop, tried: int, exhausted: bool, merged: bool) -> str:
    if not exhausted:
        message = f"{tried:,} tried, none fails"
    elif merged:
        message = f"all orders hold ({tried:,} runs, equal states merged)"
    else:
        message = f"all {tried:,} orders hold"
    if loop.timer_bound_hit:
        bound = loop.max_timer_delay
        message += f", as long as no answer comes more than {bound} timers late"
    return message
