"""What a `Watchdog` tells of those who hang, and that it leaves the others alone."""

import asyncio
import itertools
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace

import pytest

from racelab import Watchdog, watchdog

NEVER = 3600.0  # seconds
LONG_ENOUGH = 0.2  # seconds without progress: by then all have come to where they wait


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "LOOK", 0.001)


def nothing_moves() -> None:
    """The progress of those who hang."""


def join(*names: str) -> None:
    """Wait until the threads of these names have ended."""
    for thread in threading.enumerate():
        if thread.name in names:
            thread.join(10)
            assert not thread.is_alive()


def code(row: str) -> str:
    return row.split("  ")[-1]


@contextmanager
def deadlock(dog: Watchdog) -> Iterator[None]:
    """Two threads that wait for each other's lock; in the end, they are let go."""
    locks = threading.Lock(), threading.Lock()
    both = threading.Barrier(2)

    def take(mine: threading.Lock, other: threading.Lock) -> None:
        with mine:
            both.wait()
            with other:
                pass

    before = threading.enumerate()
    dog.start("scout", take, *locks)
    dog.start("critic", take, *locks[::-1])
    started = [thread for thread in threading.enumerate() if thread not in before]
    yield
    while any(thread.is_alive() for thread in started):
        for lock in locks:
            with suppress(RuntimeError):  # it was not held
                lock.release()


def test_a_deadlock_is_shown_in_the_readers_lines() -> None:
    dog = Watchdog(nothing_moves, stuck_after=LONG_ENOUGH)
    with deadlock(dog):
        scout, critic = dog.watch()
        threads = [t for t in threading.enumerate() if t.name in ("scout", "critic")]
        assert all(thread.daemon for thread in threads)  # so that a script can end
    assert scout.startswith("scout  stands at test_watchdog.py:")
    assert critic.startswith("critic stands at test_watchdog.py:")
    assert code(scout) == code(critic) == "with other:"


def test_a_team_that_finishes_is_not_stuck() -> None:
    dog = Watchdog(nothing_moves, stuck_after=NEVER)
    done: list[str] = []
    dog.start("scout", done.append, "scout")
    dog.start("critic", done.append, "critic")
    assert dog.watch() == []
    assert sorted(done) == ["critic", "scout"]


def test_a_watchdog_without_agents_returns_at_once() -> None:
    assert Watchdog(nothing_moves, stuck_after=NEVER).watch() == []


def test_progress_restarts_the_count() -> None:
    """A hundred looks at something new, then two at the same: 0.002 s are over."""
    go_on, looks = threading.Event(), itertools.count()
    dog = Watchdog(lambda: min(next(looks), 100), stuck_after=0.002)
    dog.start("scout", go_on.wait)
    assert len(dog.watch()) == 1
    assert next(looks) == 103
    go_on.set()
    join("scout", "critic")


def test_an_import_is_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the 50th look something is imported; then two looks at the same."""
    go_on, looks = threading.Event(), itertools.count()

    def imports() -> None:
        if (look := next(looks)) < 50:
            monkeypatch.setitem(sys.modules, f"imported_{look}", sys)

    dog = Watchdog(imports, stuck_after=0.002)
    dog.start("scout", go_on.wait)
    assert len(dog.watch()) == 1
    assert 52 <= next(looks) <= 54
    go_on.set()
    join("scout")


def test_an_agent_that_finishes_is_progress() -> None:
    """Two looks, then scout has finished; then three at critic alone."""
    scout_may_end, go_on, looks = (
        threading.Event(),
        threading.Event(),
        itertools.count(),
    )

    def scout_ends_at_the_second_look() -> None:
        if next(looks) == 1:
            scout_may_end.set()
            join("scout")

    dog = Watchdog(scout_ends_at_the_second_look, stuck_after=0.002)
    dog.start("scout", scout_may_end.wait)
    dog.start("critic", go_on.wait)
    (row,) = dog.watch()
    assert row.startswith("critic stands at ")
    assert next(looks) == 5
    go_on.set()
    join("scout", "critic")


def test_what_a_thread_raises_is_raised_at_once() -> None:
    go_on = threading.Event()
    dog = Watchdog(nothing_moves, stuck_after=NEVER)

    def fails() -> None:
        raise ConnectionError("no server")

    dog.start("critic", go_on.wait)
    dog.start("scout", fails)
    with pytest.raises(ConnectionError, match="no server"):
        dog.watch()
    go_on.set()
    join("critic")


def test_outside_of_the_readers_code_the_function_is_shown() -> None:
    go_on = threading.Event()
    dog = Watchdog(nothing_moves, stuck_after=LONG_ENOUGH)

    def waits() -> None:
        go_on.wait()

    dog.start("scout", go_on.wait)
    dog.start("critic", waits)
    line = waits.__code__.co_firstlineno + 1
    assert dog.watch() == [
        "scout  stands at wait() in threading.py",
        f"critic stands at test_watchdog.py:{line}    go_on.wait()",  # a column
    ]
    go_on.set()
    join("scout", "critic")


def test_an_agent_that_has_just_ended_is_not_shown() -> None:
    assert watchdog._standing({"scout": threading.Thread(target=int)}) == []


def test_an_agent_can_be_added_during_the_watch() -> None:
    dog = Watchdog(nothing_moves, stuck_after=NEVER)

    class Adds(threading.Thread):
        def is_alive(self) -> bool:
            dog.start("another", int)
            return False

    dog._watched["scout"] = Adds()
    assert dog.watch() == []
    join("another")


def test_a_long_line_is_cut() -> None:
    dog = Watchdog(nothing_moves, stuck_after=LONG_ENOUGH)
    event_of_a_very_long_name = SimpleNamespace(that_nobody_sets=threading.Event())

    def waits() -> None:
        assert event_of_a_very_long_name.that_nobody_sets.wait(timeout=NEVER), "never"

    dog.start("scout", waits)
    (row,) = dog.watch()
    assert code(row) == "assert event_of_a_very_long_name.that_nobody_sets.wai..."
    event_of_a_very_long_name.that_nobody_sets.set()
    join("scout")


async def test_waiting_tasks_stand_where_they_await_however_deep() -> None:
    slot, dog = asyncio.Semaphore(1), Watchdog(nothing_moves, stuck_after=LONG_ENOUGH)

    async def ask() -> None:
        async with slot:
            pass

    async def research() -> None:
        async with slot:
            await ask()  # for ever: its slot is the one that we hold

    parent, other = asyncio.create_task(research()), asyncio.create_task(ask())
    dog.add("parent", parent)
    dog.add("other", other)
    rows = await asyncio.to_thread(dog.watch)
    first_line = ask.__code__.co_firstlineno
    where = f"stands at test_watchdog.py:{first_line + 1}  async with slot:"
    assert rows == [f"parent {where}", f"other  {where}"]
    parent.cancel()
    await asyncio.wait([parent, other])
    assert await asyncio.to_thread(dog.watch) == []


def test_a_frozen_loop_stands_where_its_running_task_does() -> None:
    lock, begun = threading.Lock(), threading.Event()
    dog = Watchdog(nothing_moves, stuck_after=LONG_ENOUGH)

    def enter() -> None:
        begun.set()
        with lock:
            pass

    async def take() -> None:
        enter()

    async def main() -> None:
        async with asyncio.TaskGroup() as team:
            dog.add("taker", team.create_task(take()))
            dog.add("next", team.create_task(take()))

    with lock:
        dog.start("loop", asyncio.run, main())
        assert begun.wait(10)
        loop, taker, not_begun = dog.watch()
    assert code(loop) == code(taker) == "with lock:"
    assert loop.split()[1:] == taker.split()[1:]
    assert code(not_begun) == "async def take() -> None:"
    join("loop")
    assert dog.watch() == []


async def test_a_failed_task_has_finished() -> None:
    dog = Watchdog(nothing_moves, stuck_after=NEVER)

    async def fails() -> None:
        raise ConnectionError("no server")

    task = asyncio.create_task(fails())
    dog.add("scout", task)
    await asyncio.wait([task])
    assert dog.watch() == []
    assert isinstance(task.exception(), ConnectionError)  # its owner's, not ours
