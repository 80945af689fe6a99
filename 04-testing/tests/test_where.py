"""The reader's own line at which a task or a thread waits."""

import asyncio
import linecache
import subprocess
import sys
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from racelab import timeline, where
from racelab.explore import search
from racelab.where import (
    caller,
    describe,
    frames_of_task,
    frames_of_thread,
    is_the_readers,
    line_of,
    place_of,
    waiting,
)


@pytest.mark.parametrize(
    ("file", "readers"),
    [
        (__file__, True),
        (asyncio.__file__, False),
        (pytest.__file__, False),
        (timeline.__file__, False),
        (search.__file__, False),
        ("<frozen importlib._bootstrap>", False),
    ],
)
def test_python_libraries_and_racelab_are_not_the_readers(
    file: str, readers: bool
) -> None:
    assert is_the_readers(file) is readers


class Pause:
    def __await__(self) -> Generator[Any, None, None]:
        yield from asyncio.Event().wait().__await__()


async def outer() -> None:
    await inner()


async def inner() -> None:
    await Pause()


async def test_a_task_waits_at_its_innermost_line_however_deep() -> None:
    task = asyncio.create_task(outer(), name="scout")
    await asyncio.sleep(0)
    names = [frame.f_code.co_name for frame in frames_of_task(task)]
    assert names == ["__await__", "inner", "outer"]
    line = Pause.__await__.__code__.co_firstlineno + 1
    code = "yield from asyncio.Event().wait().__await__()"
    here = f"test_where.py:{line}  {code}"
    assert line_of(frames_of_task(task)) == here
    assert f"scout at {here}" in waiting(asyncio.get_running_loop())
    task.cancel()


def test_tasks_are_told_in_the_order_of_their_names() -> None:
    async def run() -> list[str]:
        names = [f"{number:02}" for number in range(20)]
        tasks = [asyncio.create_task(outer(), name=name) for name in names[::-1]]
        told = [text.split()[0] for text in waiting(asyncio.get_running_loop())]
        assert len(tasks) == 20
        return told[:20]

    assert asyncio.run(run()) == [f"{number:02}" for number in range(20)]


def test_a_thread_that_has_ended_stands_nowhere() -> None:
    assert frames_of_thread(None) == []
    assert line_of([]) == "no line of yours"


def test_a_long_line_is_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        linecache, "getline", lambda file, line: f"  {file[-3:]}{'x' * 60}"
    )
    place = place_of(sys._getframe())
    assert place.code == f".py{'x' * (where.WIDTH - 6)}..."


def fails() -> None:
    try:
        raise LookupError("no such tool")
    finally:
        sys.gettrace()  # runs after the error, on another line


def test_an_error_is_told_with_the_readers_innermost_line() -> None:
    with pytest.raises(LookupError) as raised:
        fails()
    line = fails.__code__.co_firstlineno + 2
    assert describe(raised.value) == (
        f"LookupError: no such tool, test_where.py:{line}"
    )
    with pytest.raises(ValueError, match="empty") as in_library:
        asyncio.run(asyncio.wait([]))
    assert describe(in_library.value).rpartition(", ")[2].startswith("test_where.py:")
    assert describe(TimeoutError()) == "TimeoutError"


def test_the_caller_is_the_readers_line_behind_a_library() -> None:
    names = {"caller": caller}
    exec(compile("def library(): return caller()", asyncio.__file__, "exec"), names)
    line = sys._getframe().f_lineno + 1
    assert names["library"]() == f"test_where.py:{line}"  # type: ignore[operator]
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(caller).result() == ""  # no line of the reader's


def test_an_import_has_no_side_effects_and_stays_cheap() -> None:
    """No SDK, no pytest, no thread, no loop, no signal handler, no trace."""
    code = """
import signal, sys, threading
before = [signal.getsignal(number) for number in signal.valid_signals()]
import racelab, racelab.explore
after = [signal.getsignal(number) for number in signal.valid_signals()]
heavy = {"openai", "aiohttp", "pytest", "rich", "dotenv"} & set(sys.modules)
print(heavy or "light", before == after, threading.active_count(), sys.gettrace())
"""
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (ran.stdout, ran.stderr) == ("light True 1 None\n", "")
