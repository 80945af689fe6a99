"""`Watchdog`: a team that hangs ends all the same, and tells who stands where."""

import asyncio
import linecache
import os
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any

PATIENCE = 1.5  # seconds without progress until a team counts as stuck
LOOK = 0.01  # seconds between two looks at it
WIDTH = 56  # letters of a line of code that are shown

_PATHS = sysconfig.get_paths()
_LIBRARIES = tuple(
    os.path.normcase(path) + os.sep
    for path in (os.path.dirname(__file__), _PATHS["stdlib"], _PATHS["purelib"])
)


Agent = threading.Thread | asyncio.Task[Any]


class Watchdog:
    """Watches threads and tasks, each under the name of its agent.

    `progress` is what changes as long as they get on, such as `lambda: str(timeline)`.
    A loop may be stuck as well: watch its tasks from another thread than the loop's, in
    async code with `await asyncio.to_thread(watchdog.watch)`.
    """

    def __init__(
        self, progress: Callable[[], object], patience: float | None = None
    ) -> None:
        self._progress = progress
        self._patience = PATIENCE if patience is None else patience  # seconds
        self._team: dict[str, Agent] = {}
        self._failures: list[BaseException] = []

    def start(self, who: str, function: Callable[..., object], *args: Any) -> None:
        """Call `function` in a thread that does not keep the script from ending."""

        def call() -> None:
            try:
                function(*args)
            except BaseException as error:
                self._failures.append(error)

        thread = threading.Thread(target=call, name=who, daemon=True)
        self._team[who] = thread
        thread.start()

    def add(self, who: str, task: asyncio.Task[Any]) -> None:
        """Watch a task, too."""
        self._team[who] = task

    def watch(self) -> list[str]:
        """Wait until all have finished, or nothing has changed for `patience` seconds.

        Gives one line for each that has not finished: who, in which file and line of
        the reader's own code, and the code there. Raises what a thread has raised.
        """
        before, looks = None, 0
        while team := self._unfinished():
            if self._failures:
                break
            # Counted in looks, not on a clock: when the whole machine stands still for
            # some seconds, that is one look, and no false alarm.
            # An import is progress, too: that of the SDK takes a second or more.
            now = (list(team), len(sys.modules), self._progress())
            looks = looks + 1 if now == before else 0
            if looks * LOOK >= self._patience:
                break
            before = now
            time.sleep(LOOK)
        if self._failures:
            raise self._failures[0]
        return _standing(team)

    def _unfinished(self) -> dict[str, Agent]:
        team = self._team.copy()  # others may add to it meanwhile
        return {who: agent for who, agent in team.items() if not _has_finished(agent)}


def _has_finished(agent: Agent) -> bool:
    return agent.done() if isinstance(agent, asyncio.Task) else not agent.is_alive()


def _standing(team: dict[str, Agent]) -> list[str]:
    rows = []
    for who, agent in team.items():
        frames = _frames(agent)
        for frame in [*filter(_is_the_readers, frames), *frames][:1]:
            rows.append((who, *_place(frame)))  # no frame: it has finished just now
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        f"{who:<{widths[0]}} stands at {where:<{widths[1]}}  {code}".rstrip()
        for who, where, code in rows
    ]


def _place(frame: FrameType) -> tuple[str, str]:
    file, number = frame.f_code.co_filename, frame.f_lineno
    name = os.path.basename(file)
    if not _is_the_readers(frame):
        return f"{frame.f_code.co_name}() in {name}", ""
    code = linecache.getline(file, number).strip()
    shown = code if len(code) <= WIDTH else f"{code[: WIDTH - 3]}..."
    return f"{name}:{number}", shown


def _is_the_readers(frame: FrameType) -> bool:
    file = os.path.normcase(frame.f_code.co_filename)
    return not file.startswith(("<", *_LIBRARIES))


def _frames(agent: Agent) -> list[FrameType]:
    """Its calls, the innermost first. To be read when nothing moves.

    While a thread runs, its frames are not to be trusted, and on a free-threaded Python
    it is not even safe to look at them.
    """
    stacks = {
        thread: [frame for frame, _ in traceback.walk_stack(top)]
        for thread, top in sys._current_frames().items()
    }
    if isinstance(agent, threading.Thread):
        return stacks.get(agent.ident or 0, [])
    calls: list[FrameType] = []
    coroutine: Any = agent.get_coro()
    while frame := getattr(coroutine, "cr_frame", None):  # from one `await` to the next
        calls.insert(0, frame)
        coroutine = coroutine.cr_await
    for stack in stacks.values():
        if calls and calls[-1] in stack:  # it does not await: a thread stands in it
            return stack[: stack.index(calls[-1]) + 1]
    return calls
