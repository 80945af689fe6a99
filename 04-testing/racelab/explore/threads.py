"""Every order of the lines of threads: find the race, replay it, prove the fix.

    from racelab.explore.threads import ThreadScheduler, explore, replay

    def run(scheduler: ThreadScheduler) -> Usage:
        usage = Usage(lock=scheduler.Lock())
        for agent in ("scout", "critic"):
            scheduler.start(agent, work, usage, scheduler.ask)
        scheduler.join()
        return usage

    report = explore(run, lambda usage: usage.calls == 2)
    print(report)          # all schedules hold, or the one that fails, drawn
    replay(run, report.failing, ...)  # the line of names that fails, once more

Threads take turns at any moment. Here one runs at a time, and before each line of your
own code a strategy chooses the agent that goes on: the same one, or another one (a
preemption). A schedule is a line of names, `scout#2 critic#5`: the scout goes on to the
end of its 2nd step, then the critic to the end of its 5th. The rest runs without a
preemption. A step is a line, with all that it calls in libraries or racelab.

The search tries all schedules without a preemption, then with one, then with two, then
(`preemptions=None`) all that there are. Most races need no more than two, and the first
that fails is the simplest. A result says "hold" only of what it has exhausted.

Options of `explore` and `replay`:

- `answer`: a function from the question to the answer of `scheduler.ask`.
- `max_steps`: more steps than this (10,000) in one run are a livelock.

What it needs:

- Inject locks: `scheduler.Lock()`, `scheduler.RLock()`. Build events, queues and the
  like on `scheduler.wait_until(...)`. A thread that waits for something else (a real
  lock, a queue, a socket) raises `CannotControl`, and so does one that `scheduler` has
  not started, because nothing is proven of what is not controlled here.
- Your code must do the same on each run: no real time, no unseeded randomness. A
  timeout of the scheduler's is over when no other agent can run.
- One step for one thing, because a line is not split. `x += 1` shows a lost update only
  if it calls something between read and write. On two lines it always does.
- Plain lines: a comprehension, or a statement of several lines, takes more or fewer
  steps on another Python, and a schedule with it fits only there.

Tracing makes each line many times slower: so use this for tests of a few dozen lines.

Sources: bounded preemptions are those of CHESS (Musuvathi, Qadeer and others, "Finding
and Reproducing Heisenbugs in Concurrent Programs", OSDI 2008). For real locks, single
instructions, and far fewer schedules for the same proof: frontrun
(https://pypi.org/project/frontrun/). For rare orders in long runs: PCT (Burckhardt and
others, ASPLOS 2010), as in https://pypi.org/project/interleave-test/.
"""

from collections.abc import Callable
from typing import TypedDict, TypeVar, Unpack

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
from racelab.explore.thread_scheduler import ThreadScheduler

__all__ = ["ThreadScheduler", "explore", "follow", "replay"]

T = TypeVar("T")
ThreadProgram = Callable[[ThreadScheduler], T]


class ThreadOptions(TypedDict, total=False):
    answer: Callable[[str], str]
    max_steps: int


def explore(
    run: ThreadProgram[T],
    invariant: Invariant[T] | None = None,
    *,
    preemptions: int | None = 2,
    strategy: Strategy | None = None,
    runs: int = MAX_RUNS,
    **options: Unpack[ThreadOptions],
) -> SearchResult:
    """Run `run(scheduler)` in one schedule after another, until one fails.

    `preemptions`: try all schedules with none, then with one, and so on, up to this
    number. None tries all that there are. A `strategy` (`search.random_orders()`) has
    no such bound.
    """
    scheduler, total = ThreadScheduler(run, invariant, **options), 0
    bounds = [*range(3), None] if preemptions is None else [*range(preemptions + 1)]
    for bound in bounds if strategy is None else [None]:
        tried, scheduler.bounded = 0, False
        for choose in every_order() if strategy is None else strategy:
            if total == runs:
                return SearchResult(f"{total:,} tried, none fails", total)
            execution = scheduler.execute(choose, bound)
            total, tried = total + 1, tried + 1
            if execution.kind:
                return _failure(scheduler, execution, total)
        if not scheduler.bounded:  # more preemptions make no difference
            break
    if strategy is not None:
        return SearchResult(f"{total:,} tried, none fails", total)
    most = f" with at most {bound} preemption{'' if bound == 1 else 's'}"
    within = most if scheduler.bounded else ""
    return SearchResult(f"all {tried:,} schedules{within} hold", total, exhausted=True)


def replay(
    run: ThreadProgram[T],
    schedule: str,
    invariant: Invariant[T] | None = None,
    **options: Unpack[ThreadOptions],
) -> SearchResult:
    """Run `run(scheduler)` in the order of `schedule`, and then without a preemption.

    Raises `CannotReplay` if an agent cannot run when its turn comes.
    """
    names = schedule.split()
    scheduler = ThreadScheduler(run, invariant, **options)
    execution = scheduler.execute(follow(names), record=True)
    if names and not execution.kind:
        raise CannotReplay(f"the run ends before {names[0]}")
    failing = schedule if execution.kind else None
    message = execution.message or "it holds in this order"
    kind, timeline = execution.kind, execution.timeline
    return SearchResult(message, 1, False, kind, failing, timeline)


def follow(names: list[str]) -> Choose:
    """Run each agent to the step that its name says, then take the name off `names`."""

    def choose(choices: list[str]) -> str:
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

    return choose


def _failure(
    scheduler: ThreadScheduler, execution: Execution, tried: int
) -> SearchResult:
    """Find how much of the schedule is needed. The rest is without a preemption."""
    steps = execution.schedule
    for names in [steps[: n + 1] for n in range(len(steps))] or [steps]:
        again = scheduler.execute(follow(names.copy()), record=True)
        schedule, kind = " ".join(names), again.kind
        if kind == execution.kind:
            message, timeline = again.message, again.timeline
            return SearchResult(message, tried, False, kind, schedule, timeline)
    raise NotTheSame(f"{schedule}: {execution.kind}, then {kind or 'fine'}")
