"""Every order of the lines of threads: find the race, replay it, prove the fix.

    from racelab.explore.threads import Team, explore, replay

    def run(team: Team) -> Usage:
        usage = Usage(lock=team.Lock())
        for agent in ("scout", "critic"):
            team.start(agent, work, usage, team.ask)
        team.join()
        return usage

    report = explore(run, lambda usage: usage.calls == 2)
    print(report)          # all schedules hold, or the one that fails, drawn
    replay(run, report.failing, ...)  # the line of names that fails, once more

Threads take turns at any moment. Here one runs at a time, and before each line of your
own code a strategy picks who goes on: the same one, or another one (a preemption). A
schedule is a line of names, `scout#2 critic#5`: the scout goes on to the end of its 2nd
step, then the critic to the end of its 5th; all that follows is without a preemption. A
step is a line, what is called there in libraries or racelab included.

The search tries all schedules without a preemption, then with one, then with two, then
(`preemptions=None`) all that there are. Most races need no more than two, and the first
that fails is the simplest. A report says "hold" only of what it has exhausted.

Options of `explore` and `replay`:

- `answer`: a function from the question to the answer of `team.ask`.
- `steps`: more steps than this (10,000) in one run are a livelock.

What it needs:

- Locks are injected: `team.Lock()`, `team.RLock()`. Events, queues and the like are
  made of `team.wait_until(...)`. A thread that waits for something else (a real lock, a
  queue, a socket) is refused (`CannotControl`), and so is one that `team` has not
  started: what is not controlled here is not proven.
- The code does the same on each run: no real time, no unseeded randomness. A timeout of
  `team`'s is over when nobody else can run.
- One step for one thing: a line is not split. `x += 1` shows a lost update only if
  something is called between read and write; on two lines it always does.
- Plain lines: a comprehension, or a statement of several lines, takes more or fewer
  steps on another Python, and a schedule with it fits only there.

Tracing makes each line many times slower: this is for tests of a few dozen lines.

Sources: bounded preemptions are those of CHESS (Musuvathi, Qadeer and others, "Finding
and Reproducing Heisenbugs in Concurrent Programs", OSDI 2008). For real locks, single
instructions, and far fewer schedules for the same proof: frontrun
(https://pypi.org/project/frontrun/). For rare orders in long runs: PCT (Burckhardt and
others, ASPLOS 2010), as in https://pypi.org/project/interleave-test/.
"""

from collections.abc import Callable
from typing import TypedDict, TypeVar, Unpack

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
from racelab.explore.thread_scheduler import Team

__all__ = ["Team", "explore", "follow", "replay"]

T = TypeVar("T")
Run = Callable[[Team], T]


class Options(TypedDict, total=False):
    answer: Callable[[str], str]
    steps: int


def explore(
    run: Run[T],
    invariant: Invariant[T] | None = None,
    *,
    preemptions: int | None = 2,
    strategy: Strategy | None = None,
    runs: int = MOST,
    **options: Unpack[Options],
) -> Report:
    """Play `run(team)` in one schedule after another, until one fails.

    All with no preemption, then with one, and so on, up to `preemptions`; None: all
    that there are. For a `strategy` (`search.random_orders()`) no such bound.
    """
    team, total = Team(run, invariant, **options), 0
    bounds = [*range(3), None] if preemptions is None else [*range(preemptions + 1)]
    for bound in bounds if strategy is None else [None]:
        tried, team.bounded = 0, False
        for pick in every_order() if strategy is None else strategy:
            if total == runs:
                return Report(f"{total:,} tried, none fails", total)
            played, total, tried = team.play(pick, bound), total + 1, tried + 1
            if played.kind:
                return _failure(team, played, total)
        if not team.bounded:  # more preemptions make no difference
            break
    if strategy is not None:
        return Report(f"{total:,} tried, none fails", total)
    most = f" with at most {bound} preemption{'' if bound == 1 else 's'}"
    within = most if team.bounded else ""
    return Report(f"all {tried:,} schedules{within} hold", total, exhausted=True)


def replay(
    run: Run[T],
    schedule: str,
    invariant: Invariant[T] | None = None,
    **options: Unpack[Options],
) -> Report:
    """Play `run(team)` in this order; after its end, without a preemption.

    Raises `CannotReplay` if an agent cannot run when its turn comes.
    """
    names = schedule.split()
    played = Team(run, invariant, **options).play(follow(names), record=True)
    if names and not played.kind:
        raise CannotReplay(f"the run ends before {names[0]}")
    failing = schedule if played.kind else None
    says = played.says or "it holds in this order"
    return Report(says, 1, False, played.kind, failing, played.timeline)


def follow(names: list[str]) -> Pick:
    """Until the step of each name, one after another; takes them off the list."""

    def pick(choices: list[str]) -> str:
        if not names:
            return choices[0]
        agent, _, last = names[0].rpartition("#")
        for choice in choices:
            who, _, step = choice.rpartition("#")
            if who == agent and int(step) <= int(last):
                if step == last:
                    names.pop(0)
                return choice
        raise CannotReplay(f"{names[0]} is not on offer here, only {' '.join(choices)}")

    return pick


def _failure(team: Team, played: Played, tried: int) -> Report:
    """As much of the schedule as is needed: the rest is without a preemption."""
    steps = played.schedule
    for line in [steps[: n + 1] for n in range(len(steps))] or [steps]:
        again = team.play(follow(line.copy()), record=True)
        if again.kind == played.kind:
            failing, timeline = " ".join(line), again.timeline
            return Report(again.says, tried, False, again.kind, failing, timeline)
    raise NotTheSame(f"{' '.join(line)}: {played.kind}, then {again.kind or 'fine'}")
