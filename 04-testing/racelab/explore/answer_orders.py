"""Every order in which answers can arrive: find the race, replay it, prove the fix.

    from racelab.explore import explore, replay

    report = explore(run, lambda findings: len(findings) == 2)
    print(report)          # all 6 orders hold, or the order that fails, drawn
    replay(run, report.failing, ...)  # the line of names that fails, once more

What differs from run to run in a team of agents is the order of the answers: all else
asyncio does the same way every time. So `run(ask)` is given an `ask` whose calls wait,
on a stock event loop in virtual time. When nobody can run, a strategy picks what comes
next: one of the answers that are waited for, or the next timer. If there is neither,
that is a deadlock.

A schedule is a line of names, `scout#1 critic#1 scout#2`: first the scout's first call
is answered, then the critic's, and so on; `clock#1` is the first timer that goes off.
An agent is the one of `agents` that the question names, if it names just one; else the
task: its own name, if somebody gave it one, or that of its coroutine with a number,
`research-1`, in the order in which the tasks were created.

Options of `explore` and `replay`:

- `agents`: run is called as `run(ask, timeline)`, as a script's is, with a timeline of
  these agents: `explore(script.run, check, agents=script.AGENTS)`.
- `answer`: a function from the question to the answer; what it raises, `ask` raises.
- `late`: an answer comes at most this many timers late (4): a heartbeat beats for ever.
- `steps`: more answers and timers than this (1000) in one run are a livelock.
- `wider`: any runnable task may be next, not the first in line. That finds windows made
  of `sleep(0)` alone, and may flag code that relies on first in, first out.

The code under test must do the same thing in the same order: no real time, unseeded
randomness, or order of a set (`asyncio.wait` returns sets, and `asyncio.as_completed`
starts coroutines, not tasks, in the order of one). `NotTheSame` tells what differs.
Sockets, threads and processes are refused (`CannotControl`): inject a fake.
"""

import functools
import inspect
import itertools
from collections.abc import Callable, Coroutine, Hashable, Iterable, Sequence
from typing import Any, TypedDict, TypeVar, Unpack

from racelab.explore.controlled_loop import World
from racelab.explore.search import (
    MOST,
    CannotReplay,
    Invariant,
    NotTheSame,
    Pick,
    Played,
    Report,
    Strategy,
    every_order,
)

T = TypeVar("T")
Run = Callable[..., Coroutine[Any, Any, T]]

TRIES = 300  # runs to shorten a schedule
WIDER = (
    " (wider=True: code may rely on first in, first out, and fail here without fault)"
)


class Options(TypedDict, total=False):
    agents: Sequence[str]
    answer: Callable[[str], str]
    late: int
    steps: int
    wider: bool


def explore(
    run: Run[T],
    invariant: Invariant[T] | None = None,
    *,
    strategy: Strategy | None = None,
    runs: int = MOST,
    state: Callable[[], Hashable] | None = None,
    **options: Unpack[Options],
) -> Report:
    """Play `run(ask)` in one order after another, until one fails.

    Without a `strategy`, in every order, depth-first. `state` merges what is equal: a
    function that gives all data on which the rest of a run depends, locals included;
    who waits where is taken care of. What it leaves out, the search is blind to.
    """
    if strategy is not None and state is not None:
        raise ValueError("state: only the search of every order can merge states")
    world, seen = World(run, invariant, **options), set[Hashable]()

    def is_new() -> bool:
        """Whether no run was in this state before."""
        before = len(seen)
        seen.add(world.state(state() if state else None))
        return len(seen) > before

    picks = every_order(is_new if state else None) if strategy is None else strategy
    tried, exhausted = 0, strategy is None
    with world.only_asyncio():
        for pick in picks:
            if tried == runs:
                exhausted = False
                break
            played, tried = world.play(pick), tried + 1
            if played.kind not in ("", "merged"):
                return _failure(world, played, tried)
    return Report(_claim(world, tried, exhausted, bool(state)), tried, exhausted)


def replay(
    run: Run[T],
    schedule: str,
    invariant: Invariant[T] | None = None,
    **options: Unpack[Options],
) -> Report:
    """Play `run(ask)` in this order; after its end, first in, first out.

    Raises `CannotReplay` if a name is not on offer when its turn comes.
    """
    world = World(run, invariant, **options)
    with world.only_asyncio():
        played = world.play(follow(schedule.split()), record=True)
    failing = schedule if played.kind else None
    says = played.says or "it holds in this order"
    return Report(says, 1, False, played.kind, failing, played.timeline)


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


def follow(schedule: Iterable[str], strict: bool = True) -> Pick:
    """These names, then first in, first out. Not strict: a name waits for its turn."""
    names = list(schedule)

    def pick(choices: list[str]) -> str:
        if names and names[0] in choices:
            return names.pop(0)
        if names and strict:
            on_offer = " ".join(choices)
            raise CannotReplay(f"{names[0]} is not on offer here, only: {on_offer}")
        return choices[0]

    return pick


# What comes out


def _failure(world: World, played: Played, tried: int) -> Report:
    line = _shortened(world, played)
    again = world.play(follow(line), record=True)
    if again.kind != played.kind:
        raise NotTheSame(
            f"{' '.join(line)}: {played.kind}, then {again.kind or 'fine'}"
        )
    says = again.says + (WIDER if world.wider else "")
    return Report(says, tried, False, again.kind, " ".join(line), again.timeline)


def _shortened(world: World, played: Played) -> list[str]:
    """The shortest line found that ends in the same kind of failure."""
    tries = itertools.count()

    def failing(line: list[str]) -> list[str]:
        """What is played if we follow this line as far as we can; [] if it holds."""
        if next(tries) >= TRIES:
            return []
        again = world.play(follow(line, strict=False))
        return again.schedule if again.kind == played.kind else []

    def beginning(line: list[str]) -> list[str]:
        """As much of a failing line as is needed: the rest is first in, first out."""
        lengths = range(1, len(line))
        return next((line[:n] for n in lengths if failing(line[:n])), line)

    best, place = beginning(played.schedule), 0
    while place < len(best):
        less = failing(best[:place] + best[place + 1 :])
        shorter = beginning(less)
        if less and len(shorter) < len(best):
            best, place = shorter, 0
        else:
            place += 1
    return best


def _claim(world: World, tried: int, exhausted: bool, merged: bool) -> str:
    if not exhausted:
        says = f"{tried:,} tried, none fails"
    elif merged:
        says = f"all orders hold ({tried:,} runs, equal states merged)"
    else:
        says = f"all {tried:,} orders hold"
    if world.wider:
        says += WIDER
    if world.withheld:
        says += f", as long as no answer comes more than {world.late} timers late"
    return says
