"""Where tasks wait, in the reader's own lines."""

import asyncio
import linecache
import os
import sys
import traceback
from collections.abc import Iterator
from types import CodeType
from typing import Any

OURS = tuple(os.path.dirname(f) + os.sep for f in (asyncio.__file__, __file__))


def tasks_of(loop: asyncio.AbstractEventLoop) -> list[asyncio.Task[Any]]:
    """All that are not done, in the same order on every run."""
    return sorted(asyncio.all_tasks(loop), key=lambda task: task.get_name())


def waiting(loop: asyncio.AbstractEventLoop) -> list[str]:
    """Who waits where."""
    return [f"{task.get_name()} at {line_of(task)}" for task in tasks_of(loop)]


def line_of(task: asyncio.Task[Any]) -> str:
    """The innermost line of the reader's code in which `task` waits, and its text."""
    for code, line, _ in reversed(list(frames_of(task))):
        if not code.co_filename.startswith(OURS):
            text = linecache.getline(code.co_filename, line).strip()
            return f"{os.path.basename(code.co_filename)}:{line} ({text})"
    return "no line of yours"


def frames_of(task: asyncio.Task[Any]) -> Iterator[tuple[CodeType, int, int]]:
    """Where a task waits, from the outside in: code, line, instruction."""
    awaited: Any = task.get_coro()
    while awaited is not None:
        for kind in ("cr", "gi", "ag"):  # coroutine, generator, async generator
            frame = getattr(awaited, f"{kind}_frame", None)
            if frame is not None:
                yield frame.f_code, frame.f_lineno, frame.f_lasti
                inner = "gi_yieldfrom" if kind == "gi" else f"{kind}_await"
                awaited = getattr(awaited, inner)
                break
        else:
            return


def describe(error: BaseException) -> str:
    """Type, words, and the last line of the reader's code."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    lines = [f for f in frames if not f.f_code.co_filename.startswith(OURS)]
    at = [f"{os.path.basename(f.f_code.co_filename)}:{f.f_lineno}" for f in lines[-1:]]
    return ", ".join([f"{type(error).__name__}: {error}".rstrip(": "), *at])


def caller() -> str:
    """The line from which the function that asks this was called."""
    frame = sys._getframe(2)  # inspect.stack() would read the files
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
