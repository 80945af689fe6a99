"""How a script starts and ends: the verdict's exit status, or one clear line and 2."""

import asyncio
import contextlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from racelab import guard
from racelab.reader_error import ReaderError

UNEXPECTED = 2  # exit status: neither OK (0) nor BROKEN (1)
INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it (128 + SIGINT)


def start(main: Callable[[], Coroutine[Any, Any, int] | int]) -> NoReturn:
    """Run a script's `main` and exit with the status that it returns.

    Anything unexpected is one line on stderr and exit status 2. Set RACELAB_TRACEBACK
    to any value to see the whole traceback as well.
    """
    guard.install_if_asked()
    try:
        status = _run(main)
        sys.stdout.flush()  # a full disk or a closed pipe shows here
    except KeyboardInterrupt:
        _say("interrupted")
        status = INTERRUPTED
    except BaseExceptionGroup as group:
        status = _unexpected(_first(group))
    except Exception as error:
        status = _unexpected(error)
    sys.exit(status)


def load_script(path: Path) -> ModuleType:
    """The script as a module; `if __name__ == "__main__"` is not true in it."""
    name = re.sub(r"\W", "_", f"{path.parent.name}_{path.stem}")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up the module of their class
    spec.loader.exec_module(module)
    return module


def _run(main: Callable[[], Coroutine[Any, Any, int] | int]) -> int:
    outcome = main()
    return outcome if isinstance(outcome, int) else asyncio.run(outcome)


def _unexpected(error: BaseException) -> int:
    _give_up_unwritten_output()
    if os.environ.get("RACELAB_TRACEBACK"):
        traceback.print_exception(error)
    _say(error_line(error))
    return UNEXPECTED


def error_line(error: BaseException) -> str:
    """One line about `error`: its words, and where, unless it is meant for readers."""
    words = " ".join(str(error).split())
    if isinstance(error, ReaderError):
        return words
    frames = traceback.extract_tb(error.__traceback__)
    where = [f"{os.path.basename(f.filename)}:{f.lineno}" for f in frames[-1:]]
    return " ".join([f"{type(error).__name__}: {words}", *where])


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # nobody may be left to tell
        print(f"error: {line}", file=sys.stderr, flush=True)


def _give_up_unwritten_output() -> None:
    """Else Python flushes it once more at exit, and complains with a traceback."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):
            sys.stdout.close()
