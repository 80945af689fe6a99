"""Run the code under test once, delivering the answers in an order that we choose.

`ControlledLoop` is a stock event loop in virtual time (`clock`). Its `ask` makes each
call wait. asyncio asks the selector to wait exactly when no task can run. Then `choose`
decides what comes next: one of the calls that wait, or the next timer. If there is
neither, that is a deadlock. `answer_orders` explains names and options.
"""

import asyncio
import concurrent.futures
import contextlib
import re
import socket
import subprocess
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Coroutine, Hashable, Iterator, Sequence
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any, NoReturn, TypeVarTuple
from unittest import mock

from racelab.explore.clock import CannotControl, Events, VirtualLoop
from racelab.explore.search import AlreadyVisited, Choose, Execution, LeftBehind, draw
from racelab.timeline import Timeline
from racelab.where import caller, describe, frames_of_task, tasks_of, waiting

Ts = TypeVarTuple("Ts")
MAX_BUSY_TURNS = 1_000  # of the loop without a pause: some task waits by `sleep(0)`
MAX_CANCELS = 100  # to stop the tasks that a run leaves behind
OUT_OF_CONTROL = (
    (threading.Thread, "start", "a thread"),
    (concurrent.futures.ThreadPoolExecutor, "submit", "a thread"),
    (socket.socket, "connect", "a socket"),
    (socket.socket, "bind", "a socket"),
    (subprocess.Popen, "__init__", "a process"),
)


@dataclass(eq=False, repr=False)
class ControlledLoop(VirtualLoop):
    """The event loop that executes one schedule after another."""

    run: Callable[..., Coroutine[Any, Any, Any]]
    invariant: Callable[[Any], object] | None = None
    agents: Sequence[str] = ()
    answer: Callable[[str], str] = "On {!r}: yes.".format
    max_timer_delay: int = 4
    max_steps: int = 1000
    permute_ready_queue: bool = False
    timer_bound_hit = False  # a timer was withheld, because an answer was late enough

    def __post_init__(self) -> None:
        super().__init__()
        with contextlib.suppress(RuntimeError):  # no loop runs: fine
            asyncio.get_running_loop()
            self.close()
            raise CannotControl("this runs a loop of its own: call it in a plain `def`")
        self.home = threading.get_ident()
        self.generators = weakref.WeakSet[Any]()
        self.names = [
            (agent, re.compile(rf"(?i)\b{re.escape(agent)}\b").search)
            for agent in self.agents
        ]

    def execute(self, choose: Choose, record: bool = False) -> Execution:
        """Run once, and leave nothing behind."""
        self.choose, self.record = choose, record
        self.schedule: list[str] = []
        self.notes: list[tuple[int, str, str]] = []  # step, agent, what
        self.pending: dict[str, tuple[asyncio.Future[None], int]] = {}
        self.held: dict[str, Callable[[], object]] = {}  # steps of tasks, if permuted
        self.counts = Counter[str]()
        self.starting: list[str] = []  # tasks that are being created
        self.now, self.jumps, self.spins, self.cancels = 0.0, 0, 0, 0
        self.ended, self.kind, self.message = False, "", ""
        self.broken: Exception | None = None
        self.set_exception_handler(lambda *_: None)  # what asyncio would only log
        self.call_soon(sys.set_asyncgen_hooks, self.generators.add, self._finalize)
        given = (self.ask, Marks(self)) if self.agents else (self.ask,)
        main = self.create_task(self.run(*given), name="main")
        main.add_done_callback(self._end)
        self.run_forever()
        self.timers.clear()
        self.set_task_factory(None)
        if self.broken is not None:
            raise self.broken
        if not self.kind:
            self._judge(main)
        timeline = draw(self.agents, self.notes)
        return Execution(self.schedule, self.kind, self.message, timeline)

    # The names

    def ask(self, question: str) -> Coroutine[Any, Any, str]:
        """Ask the model of the code under test. The answer comes when it is chosen."""
        return self._ask(question, caller() if self.record else "")

    async def _ask(self, question: str, line: str) -> str:
        named = [agent for agent, occurs in self.names if occurs(str(question))]
        agent = "_".join((named[0] if len(named) == 1 else self._task()).split())
        self.counts[agent] += 1
        name = f"{agent}#{self.counts[agent]}"
        answered = self.create_future()
        self.pending[name] = answered, self.jumps
        self.note(agent, f"asks #{self.counts[agent]} {line}")
        try:
            await answered
        finally:
            del self.pending[name]
        return self.answered(question)

    def answered(self, question: str) -> str:
        return self.answer(question)

    def _task(self) -> str:
        task = asyncio.current_task(self)
        return self.starting[-1] if self.starting or task is None else task.get_name()

    def create_task(self, coro: Any, *, name: Any = None, **options: Any) -> Any:
        if name is None:
            kind = getattr(coro, "__name__", "task") + "-"
            self.counts[kind] += 1
            name = f"{kind}{self.counts[kind]}"
        self.starting.append(str(name))  # an eager task runs before it has its name
        try:
            task = super().create_task(coro, name=name, **options)
        finally:
            self.starting.pop()
        # From Python 3.14 on, the name is only an option of the task factory, which may
        # drop it. The number that asyncio gives instead differs from run to run.
        task.set_name(str(name))
        return task

    # The choices

    def turn(self, timeout: float | None) -> Events:
        self.spins = (
            0 if timeout is None or self.spins > MAX_BUSY_TURNS else self.spins + 1
        )
        pause = timeout is None or self.spins > MAX_BUSY_TURNS
        try:
            if pause and not self.ended:
                self._next(all_wait=timeout is None)
        except AlreadyVisited:
            self._fail("visited", "")
        except Exception as error:
            self.ended, self.broken = True, error
        if self.ended:
            self._clear(timeout is None, pause)
        self.ring_what_is_due()
        return []

    def _next(self, all_wait: bool) -> None:
        """Let one answer arrive, or let time pass."""
        choices = self._choices()
        where = "\n".join(["", *waiting(self)]) if not choices else ""
        if not choices and all_wait:
            self._fail("deadlock", f"deadlock: all wait for each other{where}")
        elif not choices:
            self._fail("livelock", f"livelock: all are busy, and none gets on{where}")
        elif len(self.schedule) == self.max_steps:
            self._fail("livelock", f"livelock: no end after {self.max_steps} steps")
        else:
            name = self.choose(choices)
            self.schedule.append(name)
            self._do(name)

    def _choices(self) -> list[str]:
        choices = list(self.held)
        choices += [name for name, (call, _) in self.pending.items() if not call.done()]
        if not self.held and self.next_timer() < inf:
            if all(
                self.jumps - since < self.max_timer_delay
                for _, since in self.pending.values()
            ):
                choices.append(f"clock#{self.jumps + 1}")
            else:
                self.timer_bound_hit = True
        return choices

    def _do(self, name: str) -> None:
        if name in self.held:
            self.held.pop(name)()
        elif name in self.pending:
            agent, number = name.rsplit("#", 1)
            self.note(agent, f"got #{number}")
            self.pending[name][0].set_result(None)
        else:
            self.jumps += 1
            self.jump()
            self.note("clock", f"{self.now:g} s")

    def call_soon(
        self,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.Handle:
        task = getattr(callback, "__self__", None)
        if not self.permute_ready_queue or not isinstance(task, asyncio.Task):
            return super().call_soon(callback, *args, context=context)
        soon = partial(super().call_soon, callback, *args, context=context)
        name = (self.starting[-1] if self.starting else task.get_name()) + "+"
        self.counts[name] += 1
        self.held[f"{name}{self.counts[name]}"] = soon
        return asyncio.Handle(callback, args, self, context)  # no task uses it

    def state(self, shared: Hashable) -> Hashable:
        """Return what decides how a run can go on, `shared` included."""
        return (
            shared,
            frozenset(
                (
                    task.get_name(),
                    *((f.f_code, f.f_lasti) for f in frames_of_task(task)),
                )
                for task in asyncio.all_tasks(self)
            ),
            frozenset(
                (n, self.jumps - since) for n, (_, since) in self.pending.items()
            ),
            *sorted(t[0] - self.now for t in self.timers if not t[2].cancelled()),
        )

    # The end

    def _end(self, main: object) -> None:
        self.ended = True

    def _fail(self, kind: str, message: str) -> None:
        self.ended, self.kind, self.message = True, kind, message

    def _judge(self, main: asyncio.Task[Any]) -> None:
        try:
            value = main.result()
        except BaseException as error:
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            kind = "invariant" if isinstance(error, AssertionError) else "exception"
            self._fail(kind, f"raises {describe(error)}")
        else:
            self._check(value)

    def _check(self, value: Any) -> None:
        of = "" if value is None else f" for {value!r:.200}"
        try:
            if self.invariant is None or self.invariant(value) in (None, True):
                return
            self._fail("invariant", f"the invariant does not hold{of}")
        except Exception as error:
            self._fail("invariant", f"the invariant raises {describe(error)}")

    def _clear(self, all_wait: bool, pause: bool) -> None:
        """Stop what is left, as `asyncio.run` does: cancel, and wait for the end."""
        left = tasks_of(self)
        if self.held:
            for name in list(self.held):
                self._do(name)
        elif not left and all_wait and self.generators:
            for generator in list(self.generators):
                self._finalize(generator)
            self.generators.clear()
            self.cancels += 1
        elif not left and all_wait:
            self.stop()
        elif self.cancels > MAX_CANCELS:
            self.broken = LeftBehind(f"cannot be stopped: {'; '.join(waiting(self))}")
            self.stop()
        elif pause or not self.cancels:
            choices = self._choices() if self.cancels % 10 else []
            self.cancels += 1
            if choices:
                self._do(choices[0])  # what is left may need it to come to an end
            for task in left if not choices else ():
                task.cancel()

    def _finalize(self, generator: Any) -> None:
        self.create_task(generator.aclose())

    # The limits

    def refuse(self, what: str) -> NoReturn:
        """Raise, and end the run with this error even if the code swallows it."""
        try:
            super().refuse(what)
        except CannotControl as refusal:
            self.ended, self.broken = True, refusal
            raise

    def call_soon_threadsafe(
        self,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.Handle:
        if threading.get_ident() != self.home:
            self.refuse("a thread")
        return self.call_soon(callback, *args, context=context)

    @contextlib.contextmanager
    def only_asyncio(self) -> Iterator[None]:
        """Refuse sockets, threads and processes in this thread; close at the end."""

        def refusing(real: Callable[..., Any], what: str) -> Callable[..., Any]:
            def refuse(*args: Any, **options: Any) -> Any:
                if threading.get_ident() == self.home:
                    self.refuse(what)
                return real(*args, **options)

            return refuse

        try:
            with contextlib.ExitStack() as stack:
                for owner, name, what in OUT_OF_CONTROL:
                    stand_in = refusing(getattr(owner, name), what)
                    stack.enter_context(mock.patch.object(owner, name, stand_in))
                yield
        finally:
            self.close()

    def note(self, who: str, what: str) -> None:
        if self.record and not self.ended:
            self.notes.append((len(self.schedule), who, what))


class Marks(Timeline):
    """The timeline of the code under test. A recorded run draws its marks, too."""

    def __init__(self, loop: ControlledLoop) -> None:
        super().__init__(*loop.agents, clock=loop.time)
        self._loop = loop

    def mark(self, agent: str, what: str) -> None:
        super().mark(agent, what)
        self._loop.note(agent, what)
