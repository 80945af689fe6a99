"""Run scripts as a reader does, each in a process of its own, and read how they end."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

# Seconds until a script counts as hanging. It takes about 3 on an idle machine, and a
# busy machine must not fail a test.
SCRIPT_TIMEOUT = 600.0


@dataclass(frozen=True)
class Ran:
    """How a run of a script ended."""

    status: int  # exit status
    out: str
    err: str

    @property
    def last_line(self) -> str:
        return (self.out.splitlines() or [""])[-1]

    @property
    def word(self) -> str:
        """The verdict: OK, BROKEN or RESULT, or nothing if there was none."""
        return self.last_line.partition(":")[0] if ":" in self.last_line else ""

    @property
    def numbers(self) -> tuple[int, ...]:
        """The whole numbers in the last line."""
        return tuple(int(number) for number in re.findall(r"\d+", self.last_line))


RunScript = Callable[..., Ran]
LoadScript = Callable[[str], ModuleType]


def chapter_of(test: Path) -> Path:
    """Return the folder of the chapter whose `tests` or `patterns` this file is in."""
    return test.resolve().parents[1]


def command_of(script: Path) -> tuple[list[str], Path | None]:
    """Return the command that runs a script, and the folder to run it in (None: any).

    A script in a package runs as a module of it.
    """
    if (script.parent / "__init__.py").exists():
        module = f"{script.parent.name}.{script.stem}"
        return [sys.executable, "-m", module], script.parents[1]
    return [sys.executable, str(script)], None


def run_as_reader(path: Path, *arguments: str, **environment: str) -> Ran:
    """Run a script, always on the local server, and return how it ended."""
    command, folder = command_of(path)
    local = {"RACELAB_LOCAL": "1", "PYTHONUTF8": "1"}
    ended = subprocess.run(
        [*command, *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=SCRIPT_TIMEOUT,
        env={**os.environ, **local, **environment},
    )
    return Ran(ended.returncode, ended.stdout, ended.stderr)


class Reader:
    """A reader who runs scripts, some of them ahead of the test that needs them.

    The scripts in `ahead` run in the background from the start, one after another, so
    that the tests can use the other cores meanwhile.
    """

    def __init__(self, ahead: Iterable[Path] = ()) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._outputs: dict[Path, str] = {}
        self._ahead: dict[Path, Future[Ran]] = {
            script: self._pool.submit(run_as_reader, script)
            for script in dict.fromkeys(ahead)
        }

    def run(self, path: Path, *arguments: str, **environment: str) -> Ran:
        if arguments or environment:
            return run_as_reader(path, *arguments, **environment)
        ahead = self._ahead.pop(path, None)
        ran = ahead.result() if ahead else run_as_reader(path)
        self._outputs[path] = ran.out
        return ran

    def output(self, path: Path) -> str:
        """Return what the script printed in one of its runs. Run it if it never ran."""
        if path in self._ahead:
            return self._ahead[path].result().out
        return self._outputs[path] if path in self._outputs else self.run(path).out

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
