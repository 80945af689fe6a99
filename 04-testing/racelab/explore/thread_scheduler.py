"""One run of the code under test in threads, with their turns in our hands.

`Team` starts the agents, each in a thread, and lets one of them run at a time. Python
calls `Agent.trace` before each line of the reader's code (`sys.settrace`): there the
agent gives its turn back, and `pick` chooses who is next. An agent that waits for a
`TeamLock` is not on offer. If nobody is, that is a deadlock. `threads` explains names
and options.
"""

import functools
import linecache
import os
import sys
import sysconfig
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

from racelab.explore.clock import CannotControl
from racelab.explore.search import (
    CannotReplay,
    LeftBehind,
    NotTheSame,
    Pick,
    Played,
    draw,
)
from racelab.where import describe

PATIENCE = 3.0  # seconds for one step
GRACE = 100  # lines after the end of the run: locks are released, files closed
WIDTH = 48  # letters of a line of code that are shown
PATHS = sysconfig.get_paths()
LIBRARIES = tuple(
    os.path.normcase(path) + os.sep
    for path in (os.path.dirname(__file__), PATHS["stdlib"], PATHS["purelib"])
)


class Failed(BaseException):
    """The run has failed: of which kind, and what it says."""


class Stop(BaseException):
    """Ends the threads of a run that is over."""


@dataclass(eq=False, repr=False)
class Team:
    """What `run` is given: it starts agents in threads, and lets one run at a time."""

    run: Callable[["Team"], Any]
    invariant: Callable[[Any], object] | None = None
    answer: Callable[[str], str] = "On {!r}: yes.".format
    steps: int = 10_000
    bounded = False  # a preemption was not tried, because there were enough

    def play(self, pick: Pick, most: int | None = None, record: bool = False) -> Played:
        """Run once, with at most so many preemptions, and leave no thread behind."""
        self.pick, self.most, self.record = pick, most, record
        self.agents: list[Agent] = []
        self.current: Agent | None = None  # who runs, or has run last
        self.schedule: list[str] = []
        self.notes: list[tuple[int, str, str]] = []  # step, who, what
        self.taken = self.preempted = 0
        self.over, self.stranger = False, ""
        self.back = _locked()
        kind, says = "", ""
        before: Any = threading.gettrace()
        threading.settrace(self.trace)
        try:
            value = self.run(self)
            self.join()
            if self.invariant is not None and self.invariant(value) not in (None, True):
                of = "" if value is None else f" for {value!r:.200}"
                raise Failed("invariant", f"the invariant does not hold{of}")
        except Failed as failed:
            kind, says = failed.args
        except (CannotControl, CannotReplay, NotTheSame):
            raise
        except Exception as error:
            kind, says = _raised("", error)
        finally:
            threading.settrace(before)
            hanging = self.stop()
        if hanging:
            raise LeftBehind("cannot be stopped" + where(hanging))
        return Played(self.schedule, kind, says, draw((), self.notes))

    # What `run` and the agents call

    def start(self, agent: str, function: Callable[..., object], *args: Any) -> None:
        """Call `function` in a thread, from the next `join` on."""
        name = "_".join(agent.split())
        if self.over:
            raise Stop
        if any(name == other.name for other in self.agents):
            raise ValueError(f"agent {name!r}: there is one already")
        self.agents.append(Agent(self, name, functools.partial(function, *args)))
        self.agents[-1].start()

    def join(self) -> None:
        """Let all agents run to their end."""
        if isinstance(threading.current_thread(), Agent):
            self.refuse("team.join() in an agent")
        while left := [agent for agent in self.agents if not agent.ended]:
            self.current = agent = self.choose(left)
            agent.turn.release()
            if not self.back.acquire(timeout=PATIENCE):
                self.refuse(f"what {agent.name} waits for at {agent.place()}")
            if agent.error is not None:
                raise Failed(*_raised(f"{agent.name} ", agent.error))
        if self.stranger:
            self.refuse(f"the thread {self.stranger}")
        if not self.agents:
            raise CannotControl("no agent runs: call team.start(...) for each")

    def ask(self, question: str) -> str:
        """The model of the code under test: others may run before it answers."""
        self.wait_until(lambda: True, what="asks")
        return self.answer(question)

    def Lock(self) -> "TeamLock":
        return TeamLock(self)

    def RLock(self) -> "TeamLock":
        return TeamLock(self, reentrant=True)

    def wait_until(
        self,
        ready: Callable[[], object],
        timeout: float | None = None,
        what: str = "waits",
    ) -> bool:
        """Let others run, at least until `ready()`. False if the time was over.

        What follows in the same line comes before anybody else runs.
        """
        agent = threading.current_thread()
        if not isinstance(agent, Agent):
            return bool(ready()) or self.refuse("what run() itself waits for")
        agent.until, agent.timed = ready, timeout is not None
        agent.note(what)
        agent.pause()
        if self.over:
            raise Stop
        agent.until = None
        return not agent.timed

    # Who runs

    def choose(self, left: list["Agent"]) -> "Agent":
        ready = [agent for agent in left if agent.until is None or agent.until()]
        in_time = bool(ready)
        ready = ready or [agent for agent in left if agent.timed]
        if not ready:
            raise Failed("deadlock", "deadlock: all wait for each other" + where(left))
        if self.taken == self.steps:
            says = f"livelock: no end after {self.taken} steps" + where(left)
            raise Failed("livelock", says)
        can_go_on = self.current in ready
        if can_go_on:
            ready.sort(key=lambda agent: agent is not self.current)
            if self.preempted == self.most:
                self.bounded = self.bounded or len(ready) > 1
                del ready[1:]
        names = [f"{agent.name}#{agent.steps + 1}" for agent in ready]
        name = self.pick(names)
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
        """Python calls it for each call, in each new thread."""
        if not is_the_readers(frame.f_code.co_filename):
            return None
        agent = threading.current_thread()
        if isinstance(agent, Agent):
            return agent.trace
        self.stranger = agent.name
        return None

    def refuse(self, what: str) -> NoReturn:
        raise CannotControl(
            f"{what} is out of control here: use team.start(), team.Lock(), or a fake "
            "that waits with team.wait_until(...)"
        )

    def stop(self) -> list["Agent"]:
        """End all, one after another, who ran last at the end. Gives who hangs."""
        self.over = True
        for agent in sorted(self.agents, key=lambda agent: agent is self.current):
            if agent.turn.locked():
                agent.turn.release()
            agent.join(PATIENCE)
        return [agent for agent in self.agents if agent.is_alive()]


class Agent(threading.Thread):
    """A thread that runs only when it is its turn."""

    def __init__(self, team: Team, name: str, call: Callable[[], object]) -> None:
        super().__init__(name=name, daemon=True)
        self.team, self.call, self.turn = team, call, _locked()
        self.steps = self.lines_too_many = 0
        self.until: Callable[[], object] | None = None
        self.begun = self.timed = self.ended = False
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.turn.acquire()
            if not self.team.over:
                self.call()
        except BaseException as error:
            self.error = error
        finally:
            self.ended = True
            if not self.team.over:
                self.team.back.release()

    def pause(self) -> None:
        """Let others run, until it is my turn."""
        self.begun = True
        if not self.team.over:
            self.team.back.release()
            self.turn.acquire()

    def trace(self, frame: FrameType, event: str, arg: object) -> Any:
        """Python calls it before each line of the reader's code."""
        if event == "line":
            if self.begun:  # else nothing has happened since it was picked
                self.pause()
            self.begun = True
            self.note(frame)
            self.lines_too_many += self.team.over
            if self.lines_too_many > GRACE:
                raise Stop
        return self.trace

    def note(self, what: str | FrameType) -> None:
        if self.team.record and not self.team.over:
            what = what if isinstance(what, str) else text_of(what)
            notes = self.team.taken, self.name, f"#{self.steps} {what}"
            self.team.notes.append(notes)

    def place(self) -> str:
        """The innermost line of the reader's code in which it stands."""
        if not self.begun:
            return "its start"
        frame = sys._current_frames().get(self.ident or 0)
        while frame is not None and not is_the_readers(frame.f_code.co_filename):
            frame = frame.f_back
        file = os.path.basename(frame.f_code.co_filename) if frame else ""
        return f"{file}:{text_of(frame)}" if frame else "no line of yours"


class TeamLock:
    """A lock for agents. Who waits for it is not picked."""

    def __init__(self, team: Team, reentrant: bool = False) -> None:
        self.team, self.reentrant = team, reentrant
        self.owner: threading.Thread | None = None
        self.depth = 0

    def __repr__(self) -> str:
        return f"<Lock of {self.owner.name}>" if self.owner else "<Lock>"

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        me = threading.current_thread()

        def free() -> bool:
            return self.owner is None or (self.reentrant and self.owner is me)

        if blocking and not free():
            self.team.wait_until(free, None if timeout < 0 else timeout)
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


def where(agents: list[Agent]) -> str:
    return "".join(f"\n{agent.name} at {agent.place()}" for agent in agents)


def _locked() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


def _raised(who: str, error: BaseException) -> tuple[str, str]:
    kind = "invariant" if isinstance(error, AssertionError) else "exception"
    return kind, f"{who}raises {describe(error)}"


@functools.cache
def is_the_readers(file: str) -> bool:
    return not os.path.normcase(file).startswith(("<", *LIBRARIES))


def text_of(frame: FrameType) -> str:
    code = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
    shown = code if len(code) <= WIDTH else f"{code[: WIDTH - 3]}..."
    return f"{frame.f_lineno} {shown}"
