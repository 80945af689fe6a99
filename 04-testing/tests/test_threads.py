"""The explorer for threads: it finds each race, proves each fix, says what it can't."""

import itertools
import math
import random
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from racelab import Timeline
from racelab.explore import thread_scheduler
from racelab.explore.clock import CannotControl
from racelab.explore.search import CannotReplay, LeftBehind, NotTheSame, random_orders
from racelab.explore.thread_scheduler import ScheduledLock, ThreadScheduler
from racelab.explore.threads import explore, follow, replay
from racelab.script import load_script

CHAPTER_3 = Path(__file__).parents[2] / "03-thread-safety"
ThreadProgram = Callable[[ThreadScheduler], Any]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = threading.active_count(), threading.gettrace(), sys.gettrace()
    yield
    assert (threading.active_count(), threading.gettrace(), sys.gettrace()) == before


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For those who hang for certain."""
    monkeypatch.setattr(thread_scheduler, "STEP_TIMEOUT", 0.5)


@dataclass
class Usage:
    lock: Any = None
    calls: int = 0
    kept: dict[str, int] = field(default_factory=dict)


def racy(usage: Usage) -> None:
    seen = usage.calls
    usage.calls = seen + 1


def right(usage: Usage) -> None:
    with usage.lock:
        seen = usage.calls
        usage.calls = seen + 1


def both(
    work: Callable[[Usage], object], agents: str = "scout critic"
) -> ThreadProgram:
    """A run of these agents, which all do the same."""

    def run(scheduler: ThreadScheduler) -> Usage:
        usage = Usage(scheduler.Lock())
        for agent in agents.split():
            scheduler.start(agent, work, usage)
        scheduler.join()
        return usage

    return run


def two_calls(usage: Usage) -> bool:
    return usage.calls == 2


# What it finds


def test_a_lost_update_is_drawn_with_its_lines() -> None:
    report = explore(both(racy), two_calls)
    assert (report.kind, report.failing) == ("invariant", "scout#1 critic#2")
    head, agents, *rows, again = str(report).splitlines()
    assert head.startswith("the invariant does not hold for Usage(lock=<Lock>, calls=1")
    assert agents.split() == ["step", "scout", "critic"]
    start = racy.__code__.co_firstlineno
    assert [row.split() for row in rows] == [
        f"1 #1 {start + 1} seen = usage.calls".split(),
        f"2 #1 {start + 1} seen = usage.calls".split(),
        f"3 #2 {start + 2} usage.calls = seen + 1".split(),
        f"4 #2 {start + 2} usage.calls = seen + 1".split(),
    ]
    assert again == "replay(run, 'scout#1 critic#2', ...)"


def test_the_fix_is_proven() -> None:
    report = explore(both(right), two_calls, preemptions=None)
    assert str(report) == "all 8 schedules hold"
    assert report.exhausted
    assert replay(both(right), "scout#1 critic#1", two_calls).holds


def test_only_a_call_splits_a_line() -> None:
    def run(scheduler: ThreadScheduler, *, asks: bool) -> Usage:
        usage = Usage()

        def count() -> None:
            usage.calls += len(scheduler.ask("Ready?").split()) if asks else 3

        scheduler.start("scout", count)
        scheduler.start("critic", count)
        scheduler.join()
        return usage

    def all_words(usage: Usage) -> bool:
        return usage.calls == 6

    assert (
        explore(lambda scheduler: run(scheduler, asks=True), all_words).kind
        == "invariant"
    )
    assert explore(lambda scheduler: run(scheduler, asks=False), all_words).exhausted


def test_what_the_model_answers_is_an_option() -> None:
    answers: list[str] = []

    def run(scheduler: ThreadScheduler) -> None:
        scheduler.start("scout", lambda: answers.append(scheduler.ask("Ready?")))
        scheduler.join()

    explore(run, answer=str.upper)
    explore(run)
    assert answers == ["READY?", "On 'Ready?': yes."]


def test_one_preemption_misses_what_needs_two() -> None:
    def aba(usage: Usage) -> None:
        first = usage.calls
        second = usage.calls
        assert not (first == 0 and second == 1)

    def tick(usage: Usage) -> None:
        usage.calls = 1
        usage.calls = 2

    def run(scheduler: ThreadScheduler) -> None:
        usage = Usage()
        scheduler.start("reader", aba, usage)
        scheduler.start("writer", tick, usage)
        scheduler.join()

    one = explore(run, preemptions=1)
    assert one.message == "all 5 schedules with at most 1 preemption hold"
    assert one.exhausted
    two = explore(run, preemptions=2)
    assert (two.kind, two.failing) == ("invariant", "reader#1 writer#1 reader#3")
    assert "reader raises AssertionError" in two.message


def test_the_simplest_schedule_is_found_first() -> None:
    lines = ["seen = usage.calls", "usage.calls = seen + 1", *["rest = 1"] * 5]
    report = explore(both(compiled("usage", lines)), two_calls, preemptions=None)
    assert report.failing == "scout#1 critic#7"
    assert report.runs == 9  # depth-first, it is the 793rd of all orders


def test_locks_in_opposite_order_are_a_deadlock() -> None:
    def run(scheduler: ThreadScheduler, firsts: tuple[int, int] = (0, 1)) -> None:
        locks = scheduler.Lock(), scheduler.Lock()

        def work(first: int) -> None:
            with locks[first]:  # noqa: SIM117 - a line for each
                with locks[1 - first]:
                    pass

        scheduler.start("scout", work, firsts[0])
        scheduler.start("critic", work, firsts[1])
        scheduler.join()

    report = explore(run)
    assert (report.kind, report.failing) == ("deadlock", "scout#1 critic#2")
    head, *who = report.message.splitlines()
    assert head == "deadlock: all wait for each other"
    assert [line.split(":")[0] for line in who] == [
        "scout at test_threads.py",
        "critic at test_threads.py",
    ]
    assert all("with locks[1 - first]" in line for line in who)
    assert explore(lambda scheduler: run(scheduler, (0, 0)), preemptions=None).exhausted


def test_agents_that_give_way_forever_are_a_livelock() -> None:
    def polite(usage: Usage) -> None:
        while usage.calls == 0:
            usage.kept["after you"] = 1

    report = explore(both(polite), max_steps=100)
    assert report.kind == "livelock"
    assert "no end after 100 steps" in report.message
    assert "\nscout at test_threads.py" in report.message
    assert "\ncritic at its start" in report.message


def test_an_exception_ends_the_run_and_releases_locks() -> None:
    locks: list[ScheduledLock] = []

    def run(scheduler: ThreadScheduler) -> None:
        locks.append(scheduler.Lock())

        def work() -> None:
            with locks[-1]:
                raise KeyError("no such finding")

        scheduler.start("scout", work)
        scheduler.start("critic", work)
        scheduler.join()

    report = explore(run)
    assert report.kind == "exception"
    assert (
        "scout raises KeyError: 'no such finding', test_threads.py:" in report.message
    )
    assert not any(lock.locked() for lock in locks)


@pytest.mark.parametrize(
    ("error", "kind"), [(AssertionError, "invariant"), (KeyError, "exception")]
)
def test_run_may_check_for_itself(error: type[Exception], kind: str) -> None:
    def run(scheduler: ThreadScheduler) -> None:
        if both(racy)(scheduler).calls != 2:
            raise error("lost")

    report = explore(run)
    assert (report.kind, report.failing) == (kind, "scout#1 critic#2")


# What it proves


@pytest.mark.parametrize("lines", [1, 2, 3, 4])
def test_every_order_of_lines_is_tried_and_each_once(lines: int) -> None:
    work = compiled("usage", ["usage.calls += 1"] * lines)
    seen: list[int] = []
    report = explore(both(work), seen.append, preemptions=None)
    assert report.message == f"all {math.comb(2 * lines, lines)} schedules hold"
    one = explore(both(work), preemptions=1)
    assert one.runs == 2 + 2 + 2 * (lines - 1) or lines == 1


def test_the_orders_of_three_agents_are_counted() -> None:
    work = compiled("usage", ["usage.calls += 1"] * 2)
    report = explore(both(work, "scout critic writer"), preemptions=None)
    assert report.message == "all 90 schedules hold"  # 6! / (2! * 2! * 2!)


def compiled(parameter: str, lines: list[str]) -> Callable[[Any], None]:
    """A function of these lines, in a file of the reader's."""
    code = "\n    ".join([f"def work({parameter}):", *lines])
    names: dict[str, Any] = {}
    exec(compile(code, "work.py", "exec"), names)
    work: Callable[[Any], None] = names["work"]
    return work


LINES = ("x = box['a']", "x = box['b']", "box['a'] = x + 1", "box['b'] = x * 3")


@pytest.mark.parametrize("seed", range(8))
def test_random_programs_have_the_outcomes_of_all_orders(seed: int) -> None:
    chosen = random.Random(seed)
    programs = [["x = 0", *chosen.choices(LINES, k=2)] for _ in range(2)]
    outcomes = set()

    def run(scheduler: ThreadScheduler) -> None:
        box = {"a": 0, "b": 1}
        for number, program in enumerate(programs):
            scheduler.start(f"agent{number}", compiled("box", program), box)
        scheduler.join()
        outcomes.add((box["a"], box["b"]))

    explore(run, preemptions=None)
    assert outcomes == set(reference(programs))


def reference(programs: list[list[str]]) -> Iterator[tuple[int, int]]:
    for order in set(itertools.permutations([0, 0, 0, 1, 1, 1])):
        box = {"a": 0, "b": 1}
        rest = [iter(program) for program in programs]
        names = [{"box": box}, {"box": box}]
        for who in order:
            exec(next(rest[who]), names[who])
        yield box["a"], box["b"]


def pairs() -> Iterator[tuple[str, str, ThreadProgram, Callable[[Any], object]]]:
    """Chapter 3: its scripts' agents under the explorer, with the scripts' checks."""
    for word in ("broken", "fixed"):
        counter = load_script(CHAPTER_3 / f"{word}_counter.py")
        yield word, "counter", counted(counter), lambda usage: usage[0] == usage[1]
        fake = load_script(CHAPTER_3 / f"{word}_fake_lock.py")
        yield word, "fake_lock", reported(fake), lambda findings: len(findings) == 2
        order = load_script(CHAPTER_3 / f"{word}_lock_order.py")
        yield word, "lock_order", shared(order), lambda notes: notes == [2, 2]
    for name in ("broken", "fixed_lock", "fixed_immutable"):
        word, _, design = name.partition("_")
        script = "_".join([word, "team_state", design]).strip("_")
        state = load_script(CHAPTER_3 / f"{script}.py")
        yield word, script, looked_at(state), lambda seen: seen == ["whole", "whole", 2]


def counted(script: ModuleType) -> ThreadProgram:
    def run(scheduler: ThreadScheduler) -> tuple[int, int]:
        usage = script.Usage()
        usage.lock = scheduler.Lock()
        timeline = Timeline(*script.AGENTS)
        for agent in script.AGENTS[:2]:
            scheduler.start(agent, script.work, agent, usage, scheduler.ask, timeline)
        scheduler.join()
        return usage.words, sum(map(script.length, usage.answers))

    return run


class NoBarrier:
    def wait(self) -> None: ...


def reported(script: ModuleType) -> ThreadProgram:
    def run(scheduler: ThreadScheduler) -> tuple[str, ...]:
        vars(script)["Lock"] = scheduler.Lock
        report, timeline = script.Report(), Timeline(*script.AGENTS)
        for agent in script.AGENTS[:2]:
            given = agent, report, NoBarrier(), scheduler.ask, timeline
            scheduler.start(agent, script.research, *given)
        scheduler.join()
        findings: tuple[str, ...] = report.findings
        return findings

    return run


def shared(script: ModuleType) -> ThreadProgram:
    def run(scheduler: ThreadScheduler) -> list[int]:
        vars(script)["Lock"] = scheduler.Lock
        timeline = Timeline(*script.AGENTS)
        memories = [script.Memory(agent) for agent in script.AGENTS]
        for agent in script.AGENTS:
            given = agent, memories, NoBarrier(), scheduler.ask, timeline
            scheduler.start(agent, script.share, *given)
        scheduler.join()
        return [len(memory.notes) for memory in memories]

    return run


def looked_at(script: ModuleType) -> ThreadProgram:
    def run(scheduler: ThreadScheduler) -> list[Any]:
        vars(script).update(Lock=scheduler.Lock, RLock=scheduler.RLock)
        state, timeline, seen = script.Team(), Timeline(*script.AGENTS), list[Any]()
        for agent in script.AGENTS[:2]:
            scheduler.start(
                agent, script.research, agent, state, scheduler.ask, timeline
            )
        scheduler.start("dashboard", lambda: seen.append(state.look().status))
        scheduler.join()
        return [*seen, state.record.status, len(state.record.findings)]

    return run


@pytest.mark.parametrize(
    ("name", "run", "holds"),
    [pytest.param(f"{w} {n}", r, h, id=f"{w} {n}") for w, n, r, h in pairs()],
)
def test_the_pairs_of_chapter_3(
    name: str, run: ThreadProgram, holds: Callable[[Any], object]
) -> None:
    report = explore(run, holds, preemptions=1)
    if name.startswith("fixed"):
        assert report.exhausted, str(report)
    else:
        assert report.kind == ("deadlock" if "lock_order" in name else "invariant")


# What agents may do


def test_only_a_reentrant_lock_can_be_taken_twice() -> None:
    def run(scheduler: ThreadScheduler, lock: ScheduledLock) -> None:
        def work() -> None:
            with lock:  # noqa: SIM117 - a line for each
                with lock:
                    assert lock.locked()

        scheduler.start("scout", work)
        scheduler.start("critic", work)
        scheduler.join()
        assert not lock.locked()

    assert explore(
        lambda scheduler: run(scheduler, scheduler.RLock()), preemptions=None
    ).exhausted
    report = explore(lambda scheduler: run(scheduler, scheduler.Lock()))
    assert (report.kind, report.failing) == ("deadlock", "scout#2")


def test_a_lock_is_released_by_who_may() -> None:
    def run(scheduler: ThreadScheduler, *, reentrant: bool) -> None:
        lock = scheduler.RLock() if reentrant else scheduler.Lock()
        assert lock.acquire()
        assert repr(lock) == "<Lock of MainThread>"
        scheduler.start("scout", lock.release)
        scheduler.join()
        with pytest.raises(RuntimeError):
            lock.release()

    assert explore(lambda scheduler: run(scheduler, reentrant=False)).exhausted
    report = explore(lambda scheduler: run(scheduler, reentrant=True))
    assert "scout raises RuntimeError" in report.message


def test_a_lock_tried_without_waiting_has_both_outcomes() -> None:
    got = set()

    def run(scheduler: ThreadScheduler) -> None:
        lock = scheduler.Lock()

        def holds() -> None:
            with lock:
                pass

        def tries() -> None:
            if taken := lock.acquire(blocking=False):
                lock.release()
            got.add(taken)

        scheduler.start("scout", holds)
        scheduler.start("critic", tries)
        scheduler.join()

    assert explore(run).exhausted
    assert got == {True, False}


def test_a_timeout_is_over_when_nobody_else_can_run() -> None:
    got = []

    def run(scheduler: ThreadScheduler) -> None:
        lock, done = scheduler.Lock(), []

        def keeps() -> None:
            lock.acquire()
            scheduler.wait_until(lambda: done)

        def gives_up() -> None:
            got.append(lock.acquire(timeout=5))
            done.append(True)
            if got[-1]:
                lock.release()

        scheduler.start("scout", keeps)
        scheduler.start("critic", gives_up)
        scheduler.join()

    assert explore(run).exhausted
    assert set(got) == {True, False}  # who was first?


def test_a_wait_tells_whether_it_was_in_time() -> None:
    def run(scheduler: ThreadScheduler) -> None:
        done: list[bool] = []

        def waits() -> None:
            assert scheduler.wait_until(lambda: done, timeout=5) is True
            assert scheduler.wait_until(bool, timeout=5) is False

        scheduler.start("scout", waits)
        scheduler.start("critic", done.append, True)
        scheduler.join()

    assert explore(run, preemptions=None).exhausted


def test_library_calls_before_the_first_line_are_a_step() -> None:
    def keep(answer: str) -> None:
        assert answer

    def run(scheduler: ThreadScheduler) -> None:
        for agent in ("scout", "critic"):
            scheduler.start(agent, list, map(keep, map(scheduler.ask, ["Ready?"])))
        scheduler.join()

    # Three steps each: until it asks, until `keep` begins, until the end.
    assert str(explore(run, preemptions=None)) == "all 20 schedules hold"


def test_a_queue_can_be_built_on_wait_until() -> None:
    def run(scheduler: ThreadScheduler, *, safe: bool) -> list[int]:
        inbox: list[int] = []
        received: list[int] = []

        def sends() -> None:
            inbox.append(1)
            inbox.append(2)

        def receives() -> None:
            if scheduler.wait_until(lambda: inbox):
                received.append(inbox.pop(0))

        def receives_in_one_line() -> None:
            scheduler.wait_until(lambda: inbox) and received.append(inbox.pop(0))

        scheduler.start("sender", sends)
        for receiver in ("scout", "critic"):
            scheduler.start(receiver, receives_in_one_line if safe else receives)
        scheduler.join()
        return received

    report = explore(
        lambda scheduler: run(scheduler, safe=True), lambda got: got == [1, 2]
    )
    assert report.exhausted
    report = explore(
        lambda scheduler: run(scheduler, safe=False), lambda got: got == [1, 2]
    )
    assert "raises IndexError: pop from empty list" in report.message


def test_an_agent_may_start_another_one() -> None:
    def run(scheduler: ThreadScheduler) -> Usage:
        usage = Usage()

        def boss() -> None:
            scheduler.start("helper", racy, usage)
            racy(usage)

        scheduler.start("boss", boss)
        scheduler.join()
        return usage

    assert explore(run, two_calls).failing == "boss#3 helper#2"


def test_names_are_unique_words() -> None:
    def run(scheduler: ThreadScheduler) -> None:
        scheduler.start("the scout", print)
        scheduler.start("the scout", print)

    assert "ValueError: agent 'the_scout': there is one already" in explore(run).message


def test_run_may_join_more_than_once() -> None:
    def run(scheduler: ThreadScheduler) -> Usage:
        usage = Usage()
        for agent in ("scout", "critic"):
            scheduler.start(agent, racy, usage)
            scheduler.join()
        return usage

    assert str(explore(run, two_calls)) == "all 1 schedules hold"


# Searches


def test_random_orders_find_it_too_and_prove_nothing() -> None:
    report = explore(both(racy), two_calls, strategy=random_orders(seed=1))
    assert report.kind == "invariant"
    assert replay(both(racy), report.failing or "", two_calls).kind == "invariant"
    report = explore(both(right), two_calls, strategy=random_orders(), runs=20)
    assert (str(report), report.exhausted) == ("20 tried, none fails", False)


def test_a_strategy_may_end() -> None:
    report = explore(both(racy), two_calls, strategy=[follow([]), follow(["critic#2"])])
    assert (str(report), report.exhausted) == ("2 tried, none fails", False)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("scout#1 critic#3", "critic#3 is not on offer here, only scout#2"),
        ("scout#2 critic#3", "the run ends before critic#3"),
        ("scout#1 scout#1", "scout#1 is not on offer here, only scout#2 critic#1"),
        ("writer#1", "writer#1 is not on offer here, only scout#1 critic#1"),
    ],
)
def test_a_schedule_that_does_not_fit_is_told(schedule: str, message: str) -> None:
    with pytest.raises(CannotReplay, match=message):
        replay(both(racy), schedule)


@pytest.mark.parametrize("then", ["fine", "exception"])
def test_a_failure_that_differs_when_repeated_is_told(then: str) -> None:
    numbers = itertools.count()

    def run(scheduler: ThreadScheduler) -> bool:
        both(racy)(scheduler)
        again = next(numbers) > 0
        if again and then == "exception":
            raise LookupError
        return again

    with pytest.raises(NotTheSame, match=f"invariant, then {then}"):
        explore(run, bool)


def test_code_that_does_not_repeat_itself_is_told() -> None:
    numbers = itertools.count()

    def moody(usage: Usage) -> None:
        if next(numbers) % 3:
            usage.calls += 1
        usage.calls += 1

    with pytest.raises(NotTheSame):
        explore(both(moody))


# What it refuses


def test_no_agents_no_proof() -> None:
    with pytest.raises(CannotControl, match="no agent runs"):
        explore(lambda scheduler: None)


def test_a_thread_of_your_own_is_refused() -> None:
    def pool(scheduler: ThreadScheduler) -> None:
        usage = Usage()
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(racy, [usage, usage]))

    def stranger(scheduler: ThreadScheduler) -> None:
        def work() -> None:
            thread = threading.Thread(target=racy, args=[Usage()])
            thread.start()
            thread.join()

        scheduler.start("scout", work)
        scheduler.join()

    for run in (pool, stranger):
        with pytest.raises(CannotControl, match=r"the thread .* use scheduler\.start"):
            explore(run)


@pytest.mark.usefixtures("impatient")
def test_a_real_lock_is_refused_with_its_line() -> None:
    real = threading.Lock()

    def work(usage: Usage) -> None:
        with real:
            usage.calls += 1

    with pytest.raises(CannotControl) as refused:
        explore(both(work))
    where = work.__code__.co_firstlineno + 1
    assert f"waits for at test_threads.py:{where}  with real:" in str(refused.value)
    assert "use scheduler.start(), scheduler.Lock()" in str(refused.value)
    assert not real.locked()


@pytest.mark.usefixtures("impatient")
def test_an_agent_that_cannot_be_stopped_is_told() -> None:
    enough = threading.Event()

    def run(scheduler: ThreadScheduler) -> None:
        def stubborn() -> None:
            try:
                scheduler.wait_until(bool)
            except BaseException:
                enough.wait()

        scheduler.start("scout", stubborn)
        scheduler.join()

    with pytest.raises(LeftBehind, match=r"scout at test_threads\.py:.*enough\.wait"):
        explore(run)
    (left,) = (thread for thread in threading.enumerate() if thread.name == "scout")
    assert left.daemon  # so that a script can end all the same
    enough.set()
    left.join()


def test_an_agent_that_swallows_everything_ends_all_the_same() -> None:
    def run(scheduler: ThreadScheduler) -> None:
        lock = scheduler.Lock()

        def work() -> None:
            for _ in range(3):
                try:
                    lock.acquire()
                except BaseException:
                    scheduler.start("late", print)

        scheduler.start("scout", work)
        scheduler.join()

    assert explore(run).kind == "deadlock"


def test_what_run_itself_waits_for_is_refused() -> None:
    def run(scheduler: ThreadScheduler) -> None:
        lock = scheduler.Lock()
        lock.acquire()
        lock.acquire()

    with pytest.raises(CannotControl, match=r"what run\(\) itself waits for"):
        explore(run)


def test_an_agent_cannot_join() -> None:
    def run(scheduler: ThreadScheduler) -> None:
        scheduler.start("scout", scheduler.join)
        scheduler.join()

    assert (
        "scout raises CannotControl: scheduler.join() in an agent"
        in explore(run).message
    )
