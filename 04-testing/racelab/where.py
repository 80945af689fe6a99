"""The reader's own line at which a task or a thread waits."""

import asyncio
import functools
import linecache
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterable
from types import FrameType
from typing import Any, NamedTuple

WIDTH = 56  # letters of a line of code that are shown
_PATHS = sysconfig.get_paths()
_LIBRARIES = tuple(
    os.path.normcase(path) + os.sep
    for path in (
        os.path.dirname(__file__),
        *(_PATHS[name] for name in ("stdlib", "purelib", "platlib")),
    )
)


class Place(NamedTuple):
    """A line of code: `print(place)` shows `agents.py:39  await ask(question)`."""

    file: str  # without its folder
    line: int
    code: str  # shortened to WIDTH letters

    def __str__(self) -> str:
        return f"{self.file}:{self.line}  {self.code}".rstrip()


@functools.cache
def is_the_readers(file: str) -> bool:
    """Return whether `file` belongs neither to Python, a library, nor racelab."""
    return not os.path.normcase(file).startswith(("<", *_LIBRARIES))


def place_of(frame: FrameType) -> Place:
    """Return the line at which `frame` stands."""
    file, line = frame.f_code.co_filename, frame.f_lineno
    code = linecache.getline(file, line).strip()
    shown = code if len(code) <= WIDTH else f"{code[: WIDTH - 3]}..."
    return Place(os.path.basename(file), line, shown)


def readers_place(frames: Iterable[FrameType]) -> Place | None:
    """Return the first line of the reader's own code in `frames`."""
    for frame in frames:
        if is_the_readers(frame.f_code.co_filename):
            return place_of(frame)
    return None


def line_of(frames: Iterable[FrameType]) -> str:
    """Return `readers_place(frames)` as text."""
    return str(readers_place(frames) or "no line of yours")


def frames_of_task(task: asyncio.Task[Any]) -> list[FrameType]:
    """Return the calls in which `task` waits, from one `await` to the next.

    The innermost is the first.
    """
    frames = list[FrameType]()
    awaited: Any = task.get_coro()
    while awaited is not None:
        kind = "gi" if hasattr(awaited, "gi_frame") else "cr"
        frame = getattr(awaited, f"{kind}_frame", None)
        if frame is None:
            break
        frames.insert(0, frame)
        awaited = awaited.gi_yieldfrom if kind == "gi" else awaited.cr_await
    return frames


def frames_of_thread(ident: int | None) -> list[FrameType]:
    """Return the calls in which the thread stands. The innermost is the first.

    Read them when nothing moves: the frames of a running thread change under your eyes,
    and on a free-threaded Python it is not even safe to look at them.
    """
    top = sys._current_frames().get(ident or 0)
    # Without a frame, `walk_stack` would walk the stack of its caller.
    return [frame for frame, _ in traceback.walk_stack(top)] if top else []


def tasks_of(loop: asyncio.AbstractEventLoop) -> list[asyncio.Task[Any]]:
    """Return the tasks that are not done, in the same order on every run."""
    return sorted(asyncio.all_tasks(loop), key=lambda task: task.get_name())


def waiting(loop: asyncio.AbstractEventLoop) -> list[str]:
    """Return one text for each task of `loop` that is not done: its name and line."""
    return [
        f"{task.get_name()} at {line_of(frames_of_task(task))}"
        for task in tasks_of(loop)
    ]


def describe(error: BaseException) -> str:
    """Return the type and message of `error`, and the reader's line that raised it."""
    lines = [
        f"{os.path.basename(frame.f_code.co_filename)}:{line}"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if is_the_readers(frame.f_code.co_filename)
    ]
    return ", ".join([f"{type(error).__name__}: {error}".rstrip(": "), *lines[-1:]])


def caller() -> str:
    """Return the reader's line that is running, as `file:line`."""
    place = readers_place(frame for frame, _ in traceback.walk_stack(sys._getframe()))
    return f"{place.file}:{place.line}" if place else ""
