"""Run the code under test in threads once, switching them at the lines that we choose.

`ThreadScheduler` starts the agents, each in a thread, and lets one of them run at a
time. Python calls `ScheduledThread.trace` before each line of the reader's code
(`sys.settrace`). There the agent returns its turn, and `choose` decides which one is
next. An agent that waits for a `ScheduledLock` is not on offer. If none is, that is a
deadlock. `threads` explains names and options.
"""

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

from racelab.explore.clock import CannotControl
from racelab.explore.search import (
    CannotReplay,
    Choose,
    Execution,
    LeftBehind,
    NotTheSame,
    draw,
)
from racelab.where import (
    describe,
    frames_of_thread,
    is_the_readers,
    line_of,
    place_of,
)

STEP_TIMEOUT = 10.0  # seconds for one step: a busy machine is slow, a real lock hangs
LINES_AFTER_END = 100  # of an agent after the run: it releases locks and closes files


class Failed(BaseException):
    """The run has failed. The arguments are the kind of failure and the message."""


class EndOfRun(BaseException):
    """Raised in the threads of a run that is over, to end them."""


@dataclass(eq=False, repr=False)
class ThreadScheduler:
    """The argument of `run`: starts agents in threads, and lets one run at a time."""

    run: Callable[["ThreadScheduler"], Any]
    invariant: Callable[[Any], object] | None = None
    answer: Callable[[str], str] = "On {!r}: yes.".format
    max_steps: int = 10_000
    bounded = False  # a preemption was not tried, because there were enough

    def execute(
        self, choose: Choose, preemptions: int | None = None, record: bool = False
    ) -> Execution:
        """Run once, with at most `preemptions`, and leave no thread behind."""
        self.choose, self.preemptions, self.record = choose, preemptions, record
        self.agents: list[ScheduledThread] = []
        self.current: ScheduledThread | None = None  # it runs, or has run last
        self.schedule: list[str] = []
        self.notes: list[tuple[int, str, str]] = []  # step, agent, what
        self.taken = self.preempted = 0
        self.over, self.stranger = False, ""
        self.back = _locked()
        kind, message = "", ""
        before: Any = threading.gettrace()
        threading.settrace(self.trace)
        try:
            value = self.run(self)
            self.join()
            if self.invariant is not None and self.invariant(value) not in (None, True):
                of = "" if value is None else f" for {value!r:.200}"
                raise Failed("invariant", f"the invariant does not hold{of}")
        except Failed as failed:
            kind, message = failed.args
        except (CannotControl, CannotReplay, NotTheSame):
            raise
        except Exception as error:
            kind, message = _raised("", error)
        finally:
            threading.settrace(before)
            hanging = self.stop()
        if hanging:
            raise LeftBehind("cannot be stopped" + where(hanging))
        return Execution(self.schedule, kind, message, draw((), self.notes))

    # What `run` and the agents call

    def start(self, agent: str, function: Callable[..., object], *args: Any) -> None:
        """Call `function` in a thread, from the next `join` on."""
        name = "_".join(agent.split())
        if self.over:
            raise EndOfRun
        if any(name == other.name for other in self.agents):
            raise ValueError(f"agent {name!r}: there is one already")
        call = functools.partial(function, *args)
        self.agents.append(ScheduledThread(self, name, call))
        self.agents[-1].start()

    def join(self) -> None:
        """Let all agents run to their end."""
        if isinstance(threading.current_thread(), ScheduledThread):
            self.refuse("scheduler.join() in an agent")
        while left := [agent for agent in self.agents if not agent.ended]:
            self.current = agent = self.next_of(left)
            agent.turn.release()
            if not self.back.acquire(timeout=STEP_TIMEOUT):
                self.refuse(f"what {agent.name} waits for at {agent.line()}")
            if agent.error is not None:
                raise Failed(*_raised(f"{agent.name} ", agent.error))
        if self.stranger:
            self.refuse(f"the thread {self.stranger}")
        if not self.agents:
            raise CannotControl("no agent runs: call scheduler.start(...) for each")

    def ask(self, question: str) -> str:
        """Ask the model of the code under test. Others may run before it answers."""
        self.wait_until(lambda: True, what="asks")
        return self.answer(question)

    def Lock(self) -> "ScheduledLock":
        return ScheduledLock(self)

    def RLock(self) -> "ScheduledLock":
        return ScheduledLock(self, reentrant=True)

    def wait_until(
        self,
        ready: Callable[[], object],
        timeout: float | None = None,
        what: str = "waits",
    ) -> bool:
        """Let others run, at least until `ready()`. Return False if the time was over.

        What follows in the same line comes before any other agent runs.
        """
        agent = threading.current_thread()
        if not isinstance(agent, ScheduledThread):
            return bool(ready()) or self.refuse("what run() itself waits for")
        agent.until, agent.timed = ready, timeout is not None
        agent.note(what)
        agent.pause()
        if self.over:
            raise EndOfRun
        agent.until = None
        return not agent.timed

    # Which agent runs

    def next_of(self, left: list["ScheduledThread"]) -> "ScheduledThread":
        """Return the agent that makes the next step."""
        ready = [agent for agent in left if agent.until is None or agent.until()]
        in_time = bool(ready)
        ready = ready or [agent for agent in left if agent.timed]
        if not ready:
            raise Failed("deadlock", "deadlock: all wait for each other" + where(left))
        if self.taken == self.max_steps:
            message = f"livelock: no end after {self.taken} steps" + where(left)
            raise Failed("livelock", message)
        can_go_on = self.current in ready
        if can_go_on:
            ready.sort(key=lambda agent: agent is not self.current)
            if self.preempted == self.preemptions:
                self.bounded = self.bounded or len(ready) > 1
                del ready[1:]
        names = [f"{agent.name}#{agent.steps + 1}" for agent in ready]
        name = self.choose(names)
        agent = ready[names.index(name)]
        agent.timed = not in_time
        self.preempted += can_go_on and agent is not self.current
        if self.schedule and agent is self.current:
            self.schedule.pop()  # it just goes on: its last step is enough
        self.schedule.append(name)
        self.taken += 1
        agent.steps += 1
        return agent

    def trace(self, frame: FrameType, event: str, arg: object) -> Any:
        """Trace the calls of a new thread. Python calls this for each of them."""
        if not is_the_readers(frame.f_code.co_filename):
            return None
        agent = threading.current_thread()
        if isinstance(agent, ScheduledThread):
            return agent.trace
        self.stranger = agent.name
        return None

    def refuse(self, what: str) -> NoReturn:
        raise CannotControl(
            f"{what} is out of control here: use scheduler.start(), scheduler.Lock(), "
            "or a fake that waits with scheduler.wait_until(...)"
        )

    def stop(self) -> list["ScheduledThread"]:
        """End all agents, the one that ran last at the end. Return those that hang."""
        self.over = True
        for agent in sorted(self.agents, key=lambda agent: agent is self.current):
            if agent.turn.locked():
                agent.turn.release()
            agent.join(STEP_TIMEOUT)
        return [agent for agent in self.agents if agent.is_alive()]


class ScheduledThread(threading.Thread):
    """A thread that runs only when it is its turn."""

    def __init__(
        self, scheduler: ThreadScheduler, name: str, call: Callable[[], object]
    ) -> None:
        super().__init__(name=name, daemon=True)
        self.scheduler, self.call, self.turn = scheduler, call, _locked()
        self.steps = self.lines_too_many = 0
        self.until: Callable[[], object] | None = None
        self.begun = self.timed = self.ended = False
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.turn.acquire()
            if not self.scheduler.over:
                self.call()
        except BaseException as error:
            self.error = error
        finally:
            self.ended = True
            if not self.scheduler.over:
                self.scheduler.back.release()

    def pause(self) -> None:
        """Let others run, until it is my turn."""
        self.begun = True
        if not self.scheduler.over:
            self.scheduler.back.release()
            self.turn.acquire()

    def trace(self, frame: FrameType, event: str, arg: object) -> Any:
        """Pause before each line of the reader's code. Python calls this there."""
        if event == "line":
            if self.begun:  # else nothing has happened since it was chosen
                self.pause()
            self.begun = True
            self.note(frame)
            self.lines_too_many += self.scheduler.over
            if self.lines_too_many > LINES_AFTER_END:
                raise EndOfRun
        return self.trace

    def note(self, what: str | FrameType) -> None:
        if self.scheduler.record and not self.scheduler.over:
            if not isinstance(what, str):
                place = place_of(what)
                what = f"{place.line} {place.code}"
            note = self.scheduler.taken, self.name, f"#{self.steps} {what}"
            self.scheduler.notes.append(note)

    def line(self) -> str:
        """Return the reader's line at which it stands."""
        return line_of(frames_of_thread(self.ident)) if self.begun else "its start"


class ScheduledLock:
    """A lock for agents. One that waits for it is not chosen."""

    def __init__(self, scheduler: ThreadScheduler, reentrant: bool = False) -> None:
        self.scheduler, self.reentrant = scheduler, reentrant
        self.owner: threading.Thread | None = None
        self.depth = 0

    def __repr__(self) -> str:
        return f"<Lock of {self.owner.name}>" if self.owner else "<Lock>"

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        me = threading.current_thread()

        def free() -> bool:
            return self.owner is None or (self.reentrant and self.owner is me)

        if blocking and not free():
            self.scheduler.wait_until(free, None if timeout < 0 else timeout)
        if not free():
            return False
        self.owner, self.depth = me, self.depth + 1
        return True

    def release(self) -> None:
        mine = self.owner is threading.current_thread()
        if self.owner is None or (self.reentrant and not mine):
            raise RuntimeError("release of a lock that is not held")
        self.depth -= 1
        if self.depth == 0:
            self.owner = None

    def locked(self) -> bool:
        return self.owner is not None

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *raised: object) -> None:
        self.release()


def where(agents: list[ScheduledThread]) -> str:
    return "".join(f"\n{agent.name} at {agent.line()}" for agent in agents)


def _locked() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


def _raised(who: str, error: BaseException) -> tuple[str, str]:
    kind = "invariant" if isinstance(error, AssertionError) else "exception"
    return kind, f"{who}raises {describe(error)}"
