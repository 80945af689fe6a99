"""`Watchdog`: end a team that hangs, and show the line at which each agent stands."""

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from racelab.where import frames_of_task, frames_of_thread, readers_place

STUCK_AFTER = 1.5  # seconds without progress until a team counts as stuck
LOOK = 0.01  # seconds between two looks at it

Watched = threading.Thread | asyncio.Task[Any]


class Watchdog:
    """A watch over threads and tasks, each under the name of its agent.

    `progress`: a function whose value changes as long as the agents make progress, such
    as `lambda: str(timeline)`. `stuck_after`: seconds without progress until they count
    as stuck. The event loop can be stuck as well, so watch its tasks from another
    thread: in async code, `await asyncio.to_thread(watchdog.watch)`.
    """

    def __init__(
        self, progress: Callable[[], object], stuck_after: float | None = None
    ) -> None:
        self._progress = progress
        self._stuck_after = STUCK_AFTER if stuck_after is None else stuck_after
        self._watched: dict[str, Watched] = {}
        self._failures: list[BaseException] = []

    def start(self, who: str, function: Callable[..., object], *args: Any) -> None:
        """Call `function` in a thread that does not keep the script from ending."""

        def call() -> None:
            try:
                function(*args)
            except BaseException as error:
                self._failures.append(error)

        thread = threading.Thread(target=call, name=who, daemon=True)
        self._watched[who] = thread
        thread.start()

    def add(self, who: str, task: asyncio.Task[Any]) -> None:
        """Watch `task`, too."""
        self._watched[who] = task

    def watch(self) -> list[str]:
        """Wait until all agents have finished, or none has made progress for too long.

        Return one line for each agent that has not finished: its name, the file and
        line of the reader's own code, and the code there. Raise what a thread raised.
        """
        before, looks = None, 0
        while unfinished := self._unfinished():
            if self._failures:
                break
            # Count looks instead of asking a clock: when the whole machine stands still
            # for some seconds, that is one look, and no false alarm.
            # An import is progress, too, because the SDK takes a second or more.
            now = (list(unfinished), len(sys.modules), self._progress())
            looks = looks + 1 if now == before else 0
            if looks * LOOK >= self._stuck_after:
                break
            before = now
            time.sleep(LOOK)
        if self._failures:
            raise self._failures[0]
        return _standing(unfinished)

    def _unfinished(self) -> dict[str, Watched]:
        watched = self._watched.copy()  # other threads may add to it at the same time
        return {who: one for who, one in watched.items() if not _has_finished(one)}


def _has_finished(one: Watched) -> bool:
    return one.done() if isinstance(one, asyncio.Task) else not one.is_alive()


def _standing(unfinished: dict[str, Watched]) -> list[str]:
    rows = []
    for who, one in unfinished.items():
        frames = _frames(one)
        if place := readers_place(frames):
            rows.append((who, f"{place.file}:{place.line}", place.code))
        elif frames:  # else it has finished just now
            rows.append((who, _function(frames[0]), ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        f"{who:<{widths[0]}} stands at {where:<{widths[1]}}  {code}".rstrip()
        for who, where, code in rows
    ]


def _function(frame: FrameType) -> str:
    return f"{frame.f_code.co_name}() in {os.path.basename(frame.f_code.co_filename)}"


def _frames(one: Watched) -> list[FrameType]:
    """Return its calls, the innermost first."""
    if isinstance(one, threading.Thread):
        return frames_of_thread(one.ident)
    calls = frames_of_task(one)
    for ident in sys._current_frames():
        stack = frames_of_thread(ident)
        if calls and calls[-1] in stack:  # it does not await: this thread runs it
            return stack
    return calls
