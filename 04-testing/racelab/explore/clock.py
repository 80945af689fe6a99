"""Virtual time for asyncio: when no task can run, time jumps to the next timer.

    from racelab.explore import clock

    assert clock.run(a_day_of_retries()) == "done"  # in milliseconds

`VirtualLoop` is a stock event loop that keeps its timers itself. asyncio asks the
selector to wait without end exactly when no task can run, and then the next timer is
due. So time is exact to the float, stands still while a task works, and is the same on
every run. (Code that waits again and again for less than a float can express gets one
float more, so that it does not wait for ever.) What it needs:

- The code sleeps, times out and paces itself by asyncio: `asyncio.sleep`,
  `asyncio.timeout`, `loop.time()`. `time.time()` and `time.sleep()` stay real.
- No sockets: a server would need real time. Inject a fake `ask` instead.
- Work in threads (`asyncio.to_thread`) takes no virtual time, because the loop waits
  for it.

When no task can run and there is no timer, real code would hang. Here `Stuck` shows the
line at which each task waits. In pytest, `@pytest.mark.virtual_time` runs an async test
on such a loop.
"""

import asyncio
import heapq
import math
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from contextvars import Context
from functools import partial
from typing import Any, NoReturn, TypeVar, TypeVarTuple

from racelab.reader_error import ReaderError
from racelab.where import waiting

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
Timer = tuple[float, int, Any, Any]  # when, number, its handle, what rings it
Events = list[tuple[selectors.SelectorKey, int]]
MAX_TURNS = 1_000_000  # of the loop at one moment: some task polls the clock
MAX_TIMERS_AT_ONCE = 10  # that are set, at one moment, for that moment


class Stuck(ReaderError):
    """The code under test would go on for ever, or wait for ever."""


class CannotControl(ReaderError):
    """The code under test left the event loop: sockets, threads or processes."""


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` as `asyncio.run` does, in virtual time, which starts at 0."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only when no task can run, and then at once."""

    def __init__(self) -> None:
        self.now = 0.0  # seconds
        self.timers: list[Timer] = []  # a heap
        self._set = 0  # timers so far: those of the same moment go off in this order
        self._turns = 0  # of the loop, at this moment
        self._at_once = 0  # timers, set at this moment, for this moment
        self._in_threads = 0  # calls
        self._select = _Selector(self)
        super().__init__(self._select)

    def time(self) -> float:
        return self.now

    def call_at(
        self,
        when: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        ring = partial(self.call_soon, _ring, timer, callback, args, context=context)
        self._set += 1
        heapq.heappush(self.timers, (when, self._set, timer, ring))
        if when <= self.now:
            self._at_once += 1
            if self._at_once > MAX_TIMERS_AT_ONCE:  # less than a float can say
                self._pass(math.nextafter(self.now, math.inf))
        return timer

    def _pass(self, until: float) -> None:
        self._turns = 0
        if until > self.now:
            self.now, self._at_once = until, 0

    def turn(self, timeout: float | None) -> Events:
        """Do what comes before each turn of the loop. None: no task can run."""
        events: Events = []
        self._turns += 1
        if timeout is None and self._in_threads:
            events = self._select.really_wait()
        elif timeout is None and not self.jump():
            raise Stuck(f"waits for ever: {'; '.join(waiting(self))}")
        elif self._turns > MAX_TURNS:
            self._turns = 0  # the loop goes on, to cancel what is left
            raise Stuck(
                f"busy for {MAX_TURNS:,} turns at {self.now:g} s: no task waits"
            )
        self.ring_what_is_due()
        return events

    def next_timer(self) -> float:
        """Return the time of the next timer, or infinity if there is none."""
        while self.timers and self.timers[0][2].cancelled():
            heapq.heappop(self.timers)
        return self.timers[0][0] if self.timers else math.inf

    def jump(self) -> bool:
        """Let time pass until the next timer. Return False if there is none."""
        when = self.next_timer()
        if when < math.inf:
            self._pass(when)
        return when < math.inf

    def ring_what_is_due(self) -> None:
        while self.timers and self.timers[0][0] <= self.now:
            heapq.heappop(self.timers)[-1]()

    def refuse(self, what: str) -> NoReturn:
        raise CannotControl(
            f"{what} is out of control here: inject a fake in its place (an `ask`, or "
            "another async function, that only awaits)"
        )

    def run_in_executor(
        self,
        executor: Executor | None,
        func: Callable[[*Ts], T],
        *args: *Ts,
    ) -> asyncio.Future[T]:
        call = super().run_in_executor(executor, func, *args)
        self._in_threads += 1
        call.add_done_callback(self._out_of_thread)
        return call

    def _out_of_thread(self, call: object) -> None:
        self._in_threads -= 1

    async def shutdown_default_executor(self, *timeout: Any) -> None:
        self._in_threads += 1  # it waits for a thread
        try:
            await super().shutdown_default_executor(*timeout)
        finally:
            self._in_threads -= 1


def _ring(
    timer: asyncio.TimerHandle, callback: Callable[..., object], args: tuple[Any, ...]
) -> None:
    if not timer.cancelled():
        callback(*args)


class _Selector(selectors.DefaultSelector):
    """A selector that asks the loop instead of the operating system."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Events:
        return self._loop.turn(timeout)

    def really_wait(self) -> Events:
        return super().select(None)

    def register(self, file: Any, events: int, data: Any = None) -> Any:
        if self.get_map():  # the first one is how asyncio itself is woken up
            self._loop.refuse("a socket or pipe")
        return super().register(file, events, data)
