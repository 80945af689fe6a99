"""What the explorer of answer orders promises."""

import asyncio
import gc
import itertools
import random
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from racelab import Ask, Timeline
from racelab.explore import explore, for_every_order, replay
from racelab.explore.answer_orders import follow
from racelab.explore.clock import CannotControl
from racelab.explore.controlled_loop import ControlledLoop
from racelab.explore.search import (
    CannotReplay,
    LeftBehind,
    NotTheSame,
    random_orders,
)

Program = Callable[[Ask], Coroutine[Any, Any, Any]]
THREE_AGENTS = {"agents": ("plan", "cache", "code")}


class Box:
    value = 0


async def lost_update(ask: Ask) -> int:
    box = Box()

    async def agent(name: str) -> None:
        before = box.value
        await ask(name)
        box.value = before + 1

    await asyncio.gather(agent("scout"), agent("critic"))
    return box.value


async def no_lost_update(ask: Ask) -> int:
    box = Box()

    async def agent(name: str) -> None:
        await ask(name)
        box.value += 1

    await asyncio.gather(agent("scout"), agent("critic"))
    return box.value


def both_kept(value: int) -> bool:
    return value == 2


async def steps(ask: Ask, agents: str, each: int) -> list[str]:
    log: list[str] = []

    async def agent(name: str) -> None:
        for _ in range(each):
            await ask(name)
            log.append(name)

    async with asyncio.TaskGroup() as team:
        for name in agents:
            team.create_task(agent(name), name=name)
    return log


# What it finds, and what it says


def test_all_is_only_said_if_all_were_tried() -> None:
    async def run(ask: Ask) -> None:
        await steps(ask, "ab", 3)

    cut_off, proven = explore(run, runs=19), explore(run, runs=20)
    assert (str(cut_off), cut_off.exhausted) == ("19 tried, none fails", False)
    assert (str(proven), proven.exhausted) == ("all 20 orders hold", True)
    assert (proven.holds, proven.failing) == (True, None)
    assert str(explore(run, strategy=random_orders(), runs=50)) == (
        "50 tried, none fails"
    )
    assert str(explore(run, strategy=[follow([])])) == "1 tried, none fails"


def test_a_failure_is_drawn_with_lines_and_replay_call() -> None:
    report = explore(lost_update, both_kept, agents=())
    here = "test_answer_orders.py"
    line = lost_update.__code__.co_firstlineno + 5
    assert str(report) == (
        "the invariant does not hold for 1\n"
        " step  agent-1                           agent-2\n"
        f"    0  asks #1 {here}:{line}\n"
        f"    0                                    asks #1 {here}:{line}\n"
        "    1  got #1\n"
        "    2                                    got #1\n"
        "replay(run, 'agent-1#1', ...)"
    )


def test_the_marks_of_the_script_are_drawn_too() -> None:
    async def run(ask: Ask, timeline: Timeline) -> bool:
        timeline.mark("scout", "thinks")
        await ask("Scout, what do you see?")
        timeline.mark("scout", "is done")
        assert timeline.of("scout") == ["thinks", "is done"]
        return False

    report = explore(run, bool, agents=["scout", "critic"])
    assert [row.split()[1:] for row in report.timeline.splitlines()] == [
        ["scout", "critic"],
        ["thinks"],
        ["asks", "#1", report.timeline.split("asks #1 ")[1].split()[0]],
        ["got", "#1"],
        ["is", "done"],
    ]
    assert report.failing == "scout#1"


def test_an_assertion_in_the_run_is_a_failed_invariant() -> None:
    async def run(ask: Ask) -> None:
        assert await lost_update(ask) == 2, "an update was lost"

    report = explore(run)
    assert report.kind == "invariant"
    assert "an update was lost" in report.message


def test_an_invariant_may_assert() -> None:
    def check(value: int) -> None:
        assert value == 2

    assert explore(lost_update, check).kind == "invariant"
    assert explore(no_lost_update, check).holds


def test_an_exception_is_told_with_its_line() -> None:
    async def run(ask: Ask) -> None:
        async with asyncio.TaskGroup() as team:
            team.create_task(agent(ask))

    async def agent(ask: Ask) -> None:
        await ask("?")
        raise LookupError("no such tool")

    report = explore(run)
    assert report.kind == "exception"
    line = agent.__code__.co_firstlineno + 2
    assert (
        f"raises LookupError: no such tool, test_answer_orders.py:{line}"
        in report.message
    )


def test_a_deadlock_is_told_with_who_waits_where() -> None:
    async def run(ask: Ask) -> None:
        first, second = asyncio.Lock(), asyncio.Lock()

        async def agent(one: asyncio.Lock, other: asyncio.Lock) -> None:
            async with one:
                await ask("?")
                async with other:
                    await ask("?")

        async with asyncio.TaskGroup() as team:
            team.create_task(agent(first, second), name="scout")
            team.create_task(agent(second, first), name="critic")

    report = explore(run)
    assert report.kind == "deadlock"
    headline, critic, main, scout = report.message.splitlines()
    assert headline == "deadlock: all wait for each other"
    assert critic.startswith("critic at test_answer_orders.py:")
    assert critic.endswith("  async with other:")
    assert main.endswith("  async with asyncio.TaskGroup() as team:")
    assert scout.endswith("  async with other:")


def test_a_run_without_end_is_a_livelock() -> None:
    async def asks_again(ask: Ask) -> None:
        while True:
            await ask("?")

    async def spins(ask: Ask) -> None:
        while True:  # noqa: ASYNC110 - the point
            await asyncio.sleep(0)

    async def beats(ask: Ask) -> None:
        while True:  # noqa: ASYNC110 - the point
            await asyncio.sleep(1)

    assert (
        explore(asks_again, max_steps=50).message == "livelock: no end after 50 steps"
    )
    assert explore(beats, max_steps=50).kind == "livelock"
    assert "await asyncio.sleep(0)" in explore(spins).message


def test_a_bound_that_was_reached_is_said() -> None:
    async def run(ask: Ask) -> None:
        async def beat() -> None:
            while True:  # noqa: ASYNC110 - it beats
                await asyncio.sleep(1)

        heart = asyncio.create_task(beat())
        await ask("?")
        heart.cancel()

    assert str(explore(run, max_timer_delay=2)) == (
        "all 3 orders hold, as long as no answer comes more than 2 timers late"
    )


def test_an_answered_call_holds_no_timer_back() -> None:
    async def run(ask: Ask) -> None:
        await ask("?")
        for _ in range(6):  # more than `max_timer_delay`
            await asyncio.sleep(1)

    assert str(explore(run)) == "all 1 orders hold"


def test_an_answer_is_what_the_caller_wants_or_raises() -> None:
    async def run(ask: Ask) -> str:
        return await ask("Well?")

    assert explore(run, lambda value: value == "Well?", answer=str).holds
    assert explore(run, lambda value: "Well?" in value).holds

    def fails(question: str) -> str:
        raise ConnectionError(question)

    assert "ConnectionError: Well?" in explore(run, answer=fails).message


# Names


def names(run: Program, **options: Any) -> str:
    loop = ControlledLoop(run, **options)
    with loop.only_asyncio():
        return " ".join(loop.execute(lambda choices: choices[0]).schedule)


async def asks_in_several_ways(ask: Ask, timeline: object = None) -> None:
    async def research(question: str) -> None:
        await ask(question)
        await ask(question)

    await asyncio.gather(research("The scout?"), research("Scout and critic?"))
    await asyncio.create_task(research("Who?"), name="the writer")
    await ask("Critic!")


def test_an_agent_is_named_in_the_question_or_a_task() -> None:
    assert names(asks_in_several_ways, agents=("scout", "critic")) == (
        "scout#1 research-2#1 scout#2 research-2#2 the_writer#1 the_writer#2 critic#1"
    )
    assert names(asks_in_several_ways) == (
        "research-1#1 research-2#1 research-1#2 research-2#2 "
        "the_writer#1 the_writer#2 main#1"
    )


# Replay


def test_a_replay_that_holds_shows_its_timeline() -> None:
    again = replay(no_lost_update, "agent-2#1", both_kept)
    assert again.holds
    assert str(again) == "it holds in this order"
    assert again.timeline.splitlines()[3].split() == ["1", "got", "#1"]


def test_a_schedule_that_no_longer_fits_is_refused() -> None:
    says = r"writer#1 is not on offer here, only: agent-1#1 agent-2#1"
    with pytest.raises(CannotReplay, match=says):
        replay(lost_update, "writer#1", both_kept)


def test_a_refused_replay_stops_its_tasks() -> None:
    stopped = list[str]()

    async def run(ask: Ask) -> None:
        try:
            await ask("?")
        except asyncio.CancelledError:
            stopped.append("main")
            raise

    with pytest.raises(CannotReplay):
        replay(run, "writer#1")
    assert stopped == ["main"]


def test_a_step_that_a_failure_does_not_need_is_dropped() -> None:
    async def run(ask: Ask) -> bool:
        log = await steps(ask, "abc", 1)
        return log.index("b") < log.index("c")

    assert explore(run, bool, strategy=[follow(["a#1", "c#1"])]).failing == "c#1"


def test_a_schedule_is_not_shortened_to_another_failure() -> None:
    async def run(ask: Ask) -> bool:
        log = await steps(ask, "abc", 1)
        if log == ["b", "a", "c"]:  # that is "b#1" alone
            raise LookupError
        return log != ["b", "c", "a"]

    report = explore(run, bool, strategy=[follow(["b#1", "c#1"])])
    assert (report.kind, report.failing) == ("invariant", "b#1 c#1")


def test_shortening_a_schedule_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("racelab.explore.answer_orders.SHORTENING_RUNS", 3)
    logs = list[list[str]]()

    async def run(ask: Ask) -> bool:
        logs.append(await steps(ask, "abc", 4))
        return logs[-1] != logs[0]

    assert explore(run, bool, strategy=random_orders()).kind == "invariant"
    assert len(logs) == 1 + 3 + 1  # the failure, three to shorten it, the drawn one


def test_a_failure_that_does_not_come_again_is_told() -> None:
    numbers = itertools.count()

    async def run(ask: Ask) -> bool:
        await steps(ask, "ab", 1)
        return next(numbers) > 0

    with pytest.raises(NotTheSame, match="a#1 b#1: invariant, then fine"):
        explore(run, bool)


def test_code_that_differs_from_run_to_run_is_told() -> None:
    numbers = itertools.count()

    async def run(ask: Ask) -> None:
        await steps(ask, random.Random(next(numbers)).choice(["ab", "xy", "pq"]), 2)

    with pytest.raises(NotTheSame, match="does not do the same on each run"):
        explore(run)


def test_a_run_that_ends_sooner_than_before_is_told() -> None:
    numbers = itertools.count()

    async def run(ask: Ask) -> None:
        await steps(ask, "ab", 2 if next(numbers) == 0 else 0)

    with pytest.raises(NotTheSame, match="now nothing"):
        explore(run)


# Strategies


def test_random_orders_are_the_same_for_the_same_seed() -> None:
    def logs(seed: int) -> list[str]:
        seen: list[str] = []

        async def run(ask: Ask) -> None:
            seen.append("".join(await steps(ask, "abc", 2)))

        explore(run, strategy=random_orders(seed), runs=20)
        return seen

    assert logs(1) == logs(1) != logs(2)
    assert len(set(logs(1))) > 10
    assert logs(1)[:2] == ["cbcbaa", "cbcaba"]  # on every Python


# Merging


def program(seed: int) -> tuple[Program, Callable[[], Any]]:
    """A small random program of two or three agents that share two numbers."""
    rng = random.Random(seed)
    length = rng.choice([2, 2, 2, 2, 2, 3])
    parts = ["ask", "read", "write", "add"] * (4 - length) + ["ask", "read", "write"]
    codes = []
    for _ in range(length):
        rng.shuffle(parts)
        codes.append([(what, rng.randrange(2)) for what in parts])
    shared, own = [0, 0], [0] * length

    async def agent(number: int, ask: Ask) -> None:
        for what, place in codes[number]:
            if what == "read":
                own[number] = shared[place]
            elif what == "add":
                own[number] = (own[number] + 1) % 5
            elif what == "write":
                shared[place] = own[number]
            else:
                await ask("?")

    async def run(ask: Ask) -> tuple[int, ...]:
        shared[:], own[:] = [0, 0], [0] * length
        await asyncio.gather(*(agent(number, ask) for number in range(length)))
        return tuple(shared)

    return run, lambda: (*shared, *own)


@pytest.mark.long
def test_merged_and_plain_search_agree() -> None:
    saved = 0
    for seed in range(25):
        run, state = program(seed)
        ends: tuple[set[Any], set[Any]] = set(), set()
        plain = explore(run, ends[0].add)
        merged = explore(run, ends[1].add, state=state)
        assert ends[0] == ends[1], seed
        assert plain.exhausted
        assert str(merged).endswith(f"({merged.runs} runs, equal states merged)")
        saved += plain.runs - merged.runs
        if seed % 10 == 0:
            forbid = max(ends[0]).__ne__
            assert explore(run, forbid, state=state).kind == "invariant"
    assert saved > 0


def test_how_long_a_call_waits_is_part_of_a_state() -> None:
    beats = 0

    async def run(ask: Ask) -> int:
        nonlocal beats
        beats = 0

        async def beat() -> None:
            nonlocal beats
            while True:
                await asyncio.sleep(1)
                beats += 1

        heart = asyncio.create_task(beat())
        await ask("a")
        await ask("b")
        heart.cancel()
        return beats

    ends = set[int](), set[int]()
    explore(run, ends[0].add, max_timer_delay=2)
    explore(run, ends[1].add, max_timer_delay=2, state=lambda: beats)
    assert ends == ({0, 1, 2, 3, 4}, {0, 1, 2, 3, 4})


async def one_waits_for_what_nobody_does(ask: Ask) -> None:
    shared.update(x=0, flag=0)
    done, never = asyncio.Event(), asyncio.Event()

    async def waits() -> None:
        await ask("?")
        if shared["x"]:
            await never.wait()
        else:
            await done.wait()

    async def changes() -> None:
        for x in (1, 0):
            await ask("?")
            shared["x"] = x
        await ask("?")
        done.set()

    await asyncio.gather(waits(), changes())


async def one_sleeps_too_long(ask: Ask) -> None:
    shared.update(x=0, flag=0)
    answered = False

    async def sleeps() -> None:
        nonlocal answered
        await ask("?")
        answered = True
        await asyncio.sleep(1 + 9 * shared["x"])
        shared["flag"] = 1

    async def changes() -> None:
        for x in (1, 0):
            await ask("?")
            shared["x"] = x
        await asyncio.sleep(5)
        assert shared["flag"] or not answered

    await asyncio.gather(sleeps(), changes())


shared: dict[str, int] = {}


@pytest.mark.parametrize("run", [one_waits_for_what_nobody_does, one_sleeps_too_long])
def test_a_state_includes_where_and_until_when_tasks_wait(run: Program) -> None:
    plain = explore(run)
    merged = explore(run, state=lambda: tuple(shared.values()))
    assert (merged.kind, merged.holds) == (plain.kind, False)


def test_only_the_search_of_every_order_can_merge() -> None:
    with pytest.raises(ValueError, match="merge"):
        explore(lost_update, state=lambda: 0, strategy=random_orders())


# Any task that can run


async def race_in_turns_alone(ask: Ask) -> int:
    box = Box()

    async def agent(turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        before = box.value
        await asyncio.sleep(0)
        box.value = before + 1

    await asyncio.gather(agent(0), agent(5))
    return box.value


def test_permuting_the_ready_queue_finds_windows_of_turns() -> None:
    assert str(explore(race_in_turns_alone, both_kept)) == "all 1 orders hold"
    found = explore(race_in_turns_alone, both_kept, permute_ready_queue=True)
    assert found.kind == "invariant"
    assert "permute_ready_queue" in str(found)
    assert found.failing is not None
    again = replay(
        race_in_turns_alone, found.failing, both_kept, permute_ready_queue=True
    )
    assert again.kind == "invariant"


def test_permuting_says_that_it_may_flag_fifo_code() -> None:
    async def run(ask: Ask) -> list[int]:
        log = list[int]()

        async def agent(number: int) -> None:
            log.append(number)

        await asyncio.gather(*map(agent, range(2)))
        return log

    assert explore(run, lambda log: log == [0, 1]).holds
    report = explore(run, lambda log: log == [0, 1], permute_ready_queue=True)
    assert report.kind == "invariant"
    assert "first in, first out" in str(report)
    assert str(explore(run, permute_ready_queue=True)) == "all 2 orders hold"


async def asks_within_a_second(ask: Ask) -> None:
    async def agent(name: str) -> None:
        async with asyncio.timeout(1):
            await asyncio.sleep(0)
        await ask(name)

    asyncio.create_task(agent("background"))  # noqa: RUF006 - left behind
    await asyncio.gather(agent("scout"), agent("critic"))


def test_permuting_keeps_time_and_leaves_nothing() -> None:
    """Time stands still while a task can run, and each answer comes once."""
    report = explore(asks_within_a_second, permute_ready_queue=True, runs=200)
    assert report.holds, str(report)
    assert report.runs == 200


def test_permuting_lets_long_cleanup_end() -> None:
    async def run(ask: Ask) -> None:
        async def background() -> None:
            try:
                await ask("?")
            finally:
                for _ in range(20):  # a second cancellation would cut it short
                    await asyncio.sleep(0)
                cleaned.append("background")

        task = asyncio.create_task(background())
        await ask("?")
        assert not task.done()

    cleaned = list[str]()
    assert explore(run, permute_ready_queue=True, runs=1).holds
    assert cleaned == ["background"]


# Nothing is left, nothing leaves


def swallows(times: int) -> Program:
    async def run(ask: Ask) -> None:
        async def stubborn() -> None:
            for _ in range(times):
                try:
                    await asyncio.Event().wait()
                except BaseException:
                    continue

        task = asyncio.create_task(stubborn(), name="stubborn")
        await ask("?")
        assert not task.done()

    return run


async def leaves_tasks_timers_and_generators(ask: Ask) -> None:
    async def numbers() -> Any:
        try:
            while True:
                await ask("?")
                yield 1
        finally:
            await asyncio.sleep(1)
            closed.append("generator")

    async def background() -> None:
        try:
            await ask("?")
            await asyncio.sleep(1000)
        finally:
            await ask("last words")
            closed.append("task")

    kept.append(numbers())
    await anext(kept[-1])
    kept.append(asyncio.create_task(background()))
    await ask("?")
    asyncio.get_running_loop().call_later(3600, closed.append, "timer")


closed: list[str] = []
kept: list[Any] = []


def test_nothing_is_left_behind() -> None:
    closed.clear()
    kept.clear()
    threads, tasks = threading.active_count(), asyncio.Task
    before = len([o for o in gc.get_objects() if isinstance(o, tasks) and not o.done()])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = explore(leaves_tasks_timers_and_generators)
        kept.clear()
        gc.collect()
    assert report.holds, str(report)
    assert closed.count("generator") == report.runs
    assert "timer" not in closed
    after = len([o for o in gc.get_objects() if isinstance(o, tasks) and not o.done()])
    assert (after, threading.active_count()) == (before, threads)
    assert vars(threading.Thread)["start"].__name__ == "start"
    assert "connect" not in vars(socket.socket)


def test_each_run_starts_with_a_fresh_loop() -> None:
    async def run(ask: Ask) -> None:
        loop = asyncio.get_running_loop()
        assert loop.get_task_factory() is None
        loop.set_task_factory(lambda loop, coro, **options: asyncio.Task(coro))
        assert loop.time() == 0
        await asyncio.gather(ask("a"), ask("b"), asyncio.sleep(1))

    report = explore(run)
    assert report.holds, str(report)


def test_a_name_that_the_task_factory_drops_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From Python 3.14 on, the loop passes the name to the factory, and no more."""

    def create_task(loop: Any, coro: Any, **options: Any) -> Any:
        return loop.get_task_factory()(loop, coro, **options)

    async def run(ask: Ask) -> None:
        async def research() -> None:
            await ask("?")
            await asyncio.gather(ask("a"), ask("b"))

        loop = asyncio.get_running_loop()
        loop.set_task_factory(lambda loop, coro, **options: asyncio.Task(coro))
        with monkeypatch.context() as patch:
            patch.setattr(asyncio.BaseEventLoop, "create_task", create_task)
            await asyncio.create_task(research())
            await asyncio.create_task(research(), name="writer")

    assert names(run) == "research-1#1 _ask-1#1 _ask-2#1 writer#1 _ask-3#1 _ask-4#1"
    assert explore(run).exhausted
    assert explore(run, permute_ready_queue=True, runs=50).holds


def test_a_failure_of_a_background_task_is_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def run(ask: Ask) -> None:
        async def fails() -> None:
            raise ConnectionError

        asyncio.create_task(fails())  # noqa: RUF006 - the point
        await ask("?")

    assert explore(run).holds
    gc.collect()
    assert caplog.records == []


def test_the_timeline_ends_where_the_run_ends() -> None:
    async def run(ask: Ask) -> bool:
        async def background() -> None:
            try:
                await ask("?")
            finally:
                await ask("last words")

        task = asyncio.create_task(background())
        await ask("?")
        return task.done()

    report = explore(run, bool)
    assert report.timeline.count("asks") == 2
    assert report.failing == "main#1"


@pytest.mark.parametrize("times", [1, 7])
def test_a_task_that_swallows_cancellation_is_still_stopped(times: int) -> None:
    assert explore(swallows(times)).holds


def test_an_unstoppable_task_is_a_clear_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    complaints = list[object]()
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    line = r"cannot be stopped: stubborn at test_answer_orders"
    with pytest.raises(LeftBehind, match=line):
        explore(swallows(10_000))
    gc.collect()
    assert complaints == []  # of Python, about a task that is thrown away


def test_a_task_that_spins_when_cancelled_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("racelab.explore.controlled_loop.MAX_BUSY_TURNS", 10)

    async def run(ask: Ask) -> None:
        async def spins() -> None:
            for _ in range(10_000):
                try:
                    await asyncio.sleep(0)
                except asyncio.CancelledError:
                    continue

        task = asyncio.create_task(spins())
        await ask("?")
        del task

    with pytest.raises(LeftBehind, match="cannot be stopped: spins-1"):
        explore(run)


async def in_a_thread(ask: Ask) -> None:
    await asyncio.to_thread(print)


async def in_a_thread_of_its_own(ask: Ask) -> None:
    threading.Thread(target=print).start()


async def in_a_pool_that_is_warm(ask: Ask) -> None:
    await asyncio.get_running_loop().run_in_executor(warm[0], print)


async def by_a_socket_of_asyncio(ask: Ask) -> None:
    await asyncio.open_connection("127.0.0.1", 9)


async def by_a_plain_socket(ask: Ask) -> None:
    with socket.socket() as line:
        line.connect(("127.0.0.1", 9))


async def by_a_plain_server(ask: Ask) -> None:
    with socket.socket() as line:
        line.bind(("127.0.0.1", 0))


async def by_a_name(ask: Ask) -> None:
    await asyncio.open_connection("localhost", 9)


async def in_a_process(ask: Ask) -> None:
    await asyncio.create_subprocess_exec(sys.executable, "-V")


async def in_a_plain_process(ask: Ask) -> None:
    subprocess.run([sys.executable, "-V"])  # noqa: ASYNC221 - refused


async def swallowed(ask: Ask) -> None:
    try:
        await asyncio.to_thread(print)
    except Exception:
        await ask("?")


async def by_a_pipe_and_swallowed(ask: Ask) -> None:
    one, other = socket.socketpair()
    with one, other:
        try:
            asyncio.get_running_loop().add_reader(one, print)
        except Exception:
            await ask("?")


warm: list[ThreadPoolExecutor] = []


@pytest.mark.parametrize(
    ("run", "what"),
    [
        (in_a_thread, "a thread"),
        (in_a_thread_of_its_own, "a thread"),
        (in_a_pool_that_is_warm, "a thread"),
        (by_a_socket_of_asyncio, "a socket"),
        (by_a_plain_socket, "a socket"),
        (by_a_plain_server, "a socket"),
        (by_a_name, "a thread"),
        (in_a_process, "a process"),
        (in_a_plain_process, "a process"),
        (swallowed, "a thread"),
        (by_a_pipe_and_swallowed, "a socket or pipe"),
    ],
)
def test_what_cannot_be_controlled_is_refused(run: Program, what: str) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()
        warm[:] = [pool]
        with pytest.raises(CannotControl, match=f"^{what} is out of control here: inj"):
            explore(run)
        assert pool.submit(int).result() == 0  # all is as before


def test_other_threads_go_on_as_they_please() -> None:
    results = list[int]()

    def other() -> None:
        thread = threading.Thread(target=results.append, args=(1,))
        thread.start()
        thread.join()
        done.set()

    done, go = threading.Event(), threading.Event()
    starter = threading.Thread(target=lambda: (go.wait(), other()))
    starter.start()

    async def run(ask: Ask) -> None:
        go.set()
        assert done.wait(10)
        await ask("?")

    assert explore(run).holds
    starter.join()
    assert results == [1]


def test_a_call_from_another_thread_is_refused() -> None:
    loops, called = list[asyncio.AbstractEventLoop](), threading.Event()
    go, refused = threading.Event(), list[str]()

    def other() -> None:
        go.wait()
        try:
            loops[0].call_soon_threadsafe(print)
        except CannotControl as error:
            refused.append(str(error))
        called.set()

    async def run(ask: Ask) -> None:
        loops.append(asyncio.get_running_loop())
        go.set()
        called.wait()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(other)
        with pytest.raises(CannotControl, match="a thread"):
            explore(run)
    assert len(refused) == 1


async def test_a_call_in_a_running_loop_is_refused() -> None:
    with pytest.raises(CannotControl, match="loop of its own"):
        explore(lost_update)


def test_an_interrupt_goes_through_and_leaves_nothing() -> None:
    async def run(ask: Ask) -> None:
        await asyncio.gather(ask("a"), ask("b"), stop())

    async def stop() -> None:
        await asyncio.sleep(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        explore(run)
    gc.collect()
    assert explore(no_lost_update, both_kept).holds


# In pytest


@for_every_order
async def test_every_update_is_kept(ask: Ask) -> None:
    assert await no_lost_update(ask) == 2


@for_every_order(agents=("scout", "critic"), runs=1)
async def test_options_are_those_of_explore(ask: Ask, timeline: Timeline) -> None:
    assert timeline.agents == ("scout", "critic")
    assert await lost_update(ask) == 1


@pytest.mark.parametrize("number", [1, 2])
@for_every_order
async def test_fixtures_and_parameters_are_passed_on(
    ask: Ask, number: int, tmp_path: Path
) -> None:
    assert number in (1, 2)
    assert tmp_path.name
    await ask("?")


def test_a_failing_test_shows_timeline_and_replay_call() -> None:
    @for_every_order
    async def check(ask: Ask) -> None:
        assert await lost_update(ask) == 2

    with pytest.raises(AssertionError) as raised:
        check()
    *says, header, _, _, _, _, again = str(raised.value).splitlines()
    assert header.split() == ["step", "agent-1", "agent-2"]
    assert any("assert 1 == 2" in line for line in says)
    assert again == "replay(run, 'agent-1#1', ...)"
    assert raised.traceback[-1].frame.f_locals["__tracebackhide__"]
