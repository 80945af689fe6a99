"""Locks that stop a loop, or each other, and a queue that wakes nobody.

Each pair with the same check, with fakes that are exact. What hangs is let go by the
test, so that no thread is left.
"""

import asyncio
import selectors
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest

from racelab import Timeline, Watchdog, watchdog
from racelab.fakes import fake_ask
from racelab.pytest.run_scripts import LoadScript, Reader

STANDS = {  # who stands where in the end
    "lock_across_await": {
        "loop": "with report.lock:",  # the thread of all stands where one agent does
        "tester": 'answer = await ask(f"As the {agent}, name a risk.")',
        "editor": "with report.lock:",
        "scout": "async def research(agent: str, report: Report, ask: A...",
    },
    "lock_order": dict.fromkeys(("scout", "critic"), "with second.lock:"),
    "wrong_loop": {"boss": "findings.append(await inbox.queue.get())"},
}
ORDERS = range(50)  # seeds of the fake model


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "LOOK", 0.0005)


@pytest.mark.parametrize("pair", STANDS)
def test_reader_sees_which_line_each_agent_stands_at(
    pair: str, chapter: Path, reader: Reader
) -> None:
    broken = reader.output(chapter / f"broken_{pair}.py")
    assert stands(broken).items() >= STANDS[pair].items()
    assert stands(reader.output(chapter / f"fixed_{pair}.py")) == {}


def stands(out: str) -> dict[str, str]:
    """Who stands at which line of code."""
    rows = [line.split(" stands at ") for line in out.splitlines()]
    return {
        row[0].strip(): row[1].split("  ")[-1].strip() for row in rows if len(row) == 2
    }


class Lock:
    """A threading lock that tells when someone has to wait for it."""

    made: ClassVar[list["Lock"]] = []
    waits: ClassVar = threading.Semaphore(0)  # one for each who waits, or has waited

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.made.append(self)

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self.waits.release()
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


@contextmanager
def let_go(module: ModuleType, *threads: str) -> Iterator[None]:
    """In the end, release the module's locks until its threads of these names end."""
    vars(module)["Lock"] = Lock
    Lock.made, Lock.waits = [], threading.Semaphore(0)
    try:
        yield
    finally:
        for thread in threading.enumerate():
            while thread.name in threads and thread.is_alive():
                for lock in Lock.made:
                    with suppress(RuntimeError):  # it was not held
                        lock.__exit__()
                thread.join(0.001)


@pytest.mark.usefixtures("switch_intervals")
def test_the_loop_stands_still_in_every_order_tried(load_script: LoadScript) -> None:
    module = load_script("broken_lock_across_await.py")
    for seed in ORDERS:
        timeline = Timeline(*module.AGENTS, "dashboard")
        dog = Watchdog(lambda timeline=timeline: str(timeline), stuck_after=0.002)
        with let_go(module, "loop"):
            dog.start("loop", asyncio.run, module.run(fake_ask(seed), timeline, dog))
            assert Lock.waits.acquire(timeout=600)
            assert len(dog.watch()) == 4  # three agents and the loop
            marks = [timeline.of(agent) for agent in timeline.agents]
            assert marks == [["holds the lock"], [], [], []]


@pytest.mark.usefixtures("switch_intervals")
def test_lock_without_an_await_stops_nobody(
    load_script: LoadScript,
) -> None:
    module = load_script("fixed_lock_across_await.py")
    for seed in ORDERS:
        timeline = Timeline(*module.AGENTS, "dashboard")
        dog = Watchdog(lambda timeline=timeline: str(timeline))
        dog.start("loop", asyncio.run, module.run(fake_ask(seed), timeline, dog))
        assert dog.watch() == []
        assert timeline.of("dashboard") == ["sees 3"]


class BothWait(Watchdog):
    """Looks when each of two waits for a lock: from then on, nothing can change."""

    def watch(self) -> list[str]:
        assert Lock.waits.acquire(timeout=600)
        assert Lock.waits.acquire(timeout=600)
        return super().watch()


def test_opposite_orders_stop_both_in_every_run(
    load_script: LoadScript, monkeypatch: pytest.MonkeyPatch, switch_intervals: range
) -> None:
    monkeypatch.setattr(watchdog, "STUCK_AFTER", 0)
    module = load_script("broken_lock_order.py")
    vars(module)["Watchdog"] = BothWait
    for _ in switch_intervals:
        timeline = Timeline(*module.AGENTS)
        with let_go(module, *module.AGENTS):
            stuck = module.run(str.upper, timeline)
            assert [row.split()[0] for row in stuck] == ["scout", "critic"]
            assert timeline.of("scout") == ["holds scout's"]
            assert timeline.of("critic") == ["holds critic's"]


def test_one_order_lets_both_finish_in_every_run(
    load_script: LoadScript, switch_intervals: range
) -> None:
    module = load_script("fixed_lock_order.py")
    for _ in switch_intervals:
        assert module.run(str.upper, Timeline(*module.AGENTS)) == []


class Asleep(selectors.DefaultSelector):
    """Tells when its loop goes to sleep: nothing to do, and no timer."""

    def __init__(self) -> None:
        super().__init__()
        self.asleep = threading.Event()

    def select(self, timeout: float | None = None) -> list[tuple[object, int]]:
        if timeout is None:
            self.asleep.set()
        return super().select(timeout)


def from_threads(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, Timeline]:
    """How many findings were received, when all are sent to a loop that sleeps."""
    selector, timeline = Asleep(), Timeline(*module.AGENTS, "boss")

    def ask(question: str) -> str:
        assert selector.asleep.wait(600)
        return question

    loop = asyncio.SelectorEventLoop(selector)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(asyncio, "new_event_loop", lambda: loop)
            return module.run(ask, timeline)[0], timeline
    finally:
        if not loop.is_closed():  # the run has failed
            loop.set_exception_handler(lambda *_: None)  # of what it leaves behind
            loop.call_soon_threadsafe(loop.stop)
            join(*module.AGENTS, "loop")
            loop.close()


def join(*names: str) -> None:
    """Wait until the threads of these names have ended."""
    for thread in threading.enumerate():
        if thread.name in names:
            thread.join(600)
            assert not thread.is_alive()


class AllSent(Watchdog):
    """Looks when all have sent, and again when the loop, woken by then, has ended."""

    waits_for = ("scout", "critic", "writer")

    def watch(self) -> list[str]:
        join(*self.waits_for)
        self.waits_for = ("loop",)
        return super().watch()


def test_put_by_a_thread_wakes_nobody_in_every_run(
    load_script: LoadScript, monkeypatch: pytest.MonkeyPatch, switch_intervals: range
) -> None:
    monkeypatch.setattr(watchdog, "STUCK_AFTER", 0)
    module = load_script("broken_wrong_loop.py")
    vars(module)["Watchdog"] = AllSent
    for _ in switch_intervals:
        received, timeline = from_threads(module, monkeypatch)
        assert received == 0
        # They were there: the first thing to wake the loop delivers them.
        assert timeline.of("boss") == ["has 1", "has 2", "has 3"]


def test_put_by_the_loop_arrives_in_every_run(
    load_script: LoadScript, monkeypatch: pytest.MonkeyPatch, switch_intervals: range
) -> None:
    module = load_script("fixed_wrong_loop.py")
    for _ in switch_intervals:
        assert from_threads(module, monkeypatch)[0] == 3


def test_an_inbox_for_one_loses_nothing_in_every_run(
    load_script: LoadScript, monkeypatch: pytest.MonkeyPatch, repeats: int
) -> None:
    module = load_script("solutions/wrong_loop_with_backpressure.py")
    for _ in range(10 * repeats):
        assert from_threads(module, monkeypatch)[0] == 3


def test_asyncio_in_debug_mode_raises_at_once(
    load_script: LoadScript, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONASYNCIODEBUG", "1")
    module = load_script("broken_wrong_loop.py")
    with pytest.raises(RuntimeError, match="Non-thread-safe operation"):
        from_threads(module, monkeypatch)


async def waits_for(lock: asyncio.Lock) -> None:
    """Two tasks take it at the same time: one of them has to wait."""

    async def take() -> None:
        async with lock:
            await asyncio.sleep(0)

    await asyncio.gather(take(), take())


async def takes(lock: asyncio.Lock) -> None:
    async with lock:
        await asyncio.sleep(0)


def test_asyncio_lock_notices_another_loop_only_when_waiting() -> None:
    lock = asyncio.Lock()
    asyncio.run(takes(lock))  # taken at once: it belongs to no loop yet
    asyncio.run(waits_for(lock))  # now it belongs to this one
    asyncio.run(takes(lock))  # taken at once: nobody notices
    with pytest.raises(RuntimeError, match="is bound to a different event loop"):
        asyncio.run(waits_for(lock))
