"""What the tests of all folders share: a server, scripts to run, and a guard.

Loaded by `.pytest.ini`. Fixtures:

- `model_server`: one local model server per session, reset before each test;
- `script`: run a script as a reader does, in a process of its own;
- `lesson`: load a script as a module, to call its `run(...)`;
- `play`: run a script's `main()` in this process, on the session's server;
- `stale`: the blocks of a README that its scripts no longer print.
"""

import asyncio
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from racelab import guard
from racelab.process import LocalServer, local_server, share
from racelab.readme import stale_blocks
from racelab.script import start
from racelab.settings import Settings, Stats

if TYPE_CHECKING:
    from racelab.server import Server

KINDS = ("broken_*.py", "fixed_*.py", "benchmark_*.py")
PATIENCE = 10.0  # seconds at most, for something that takes none
SCRIPT_TIMEOUT = 60.0  # seconds; a script takes about 3, a benchmark about 15


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
Load = Callable[[str], ModuleType]
Stale = Callable[[Path], list[str]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--script-runs",
        type=int,
        default=1,
        metavar="N",
        help="run each broken_ and fixed_ script N times as a reader does (default: 1)",
    )


def pytest_configure() -> None:
    """Tests never spend money, and never leave this machine."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_MODEL"):
        os.environ.pop(name, None)
    os.environ["RACELAB_LOCAL"] = "1"
    # A folder without certificates: nothing here speaks TLS, and loading those of the
    # system takes each new client 50 ms.
    os.environ["SSL_CERT_DIR"] = str(Path(__file__).parent)
    guard.install()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Fail a test that tried to leave this machine, even if it caught the error."""
    yield
    if guard.blocked:
        tried = ", ".join(sorted(set(guard.blocked)))
        guard.blocked.clear()
        pytest.fail(f"the test tried to reach {tried}: not on this machine")


def pytest_runtest_setup() -> None:
    guard.blocked.clear()


@pytest.fixture(scope="session")
def session_server() -> Iterator[LocalServer]:
    with local_server() as server:
        yield server


@pytest.fixture
def model_server(session_server: LocalServer) -> LocalServer:
    """The session's server, with default settings and all counts at zero."""
    session_server.reset(Settings())
    return session_server


class Reader:
    """Runs scripts as a reader does, each in a process of its own.

    The first time that a script of a folder is asked for, all its scripts start to
    run in the background, two at a time: most of a run is imports and waiting.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=2)
        self._ahead: dict[Path, Future[Ran]] = {}
        self._outputs: dict[Path, str] = {}

    def run(self, path: Path, *arguments: str, **environment: str) -> Ran:
        if arguments or environment:
            return run_as_reader(path, *arguments, **environment)
        if path not in self._outputs and path not in self._ahead:
            scripts = [p for kind in KINDS for p in sorted(path.parent.glob(kind))]
            for script in dict.fromkeys([path, *scripts]):
                self._ahead[script] = self._pool.submit(run_as_reader, script)
        ahead = self._ahead.pop(path, None)
        ran = ahead.result() if ahead else run_as_reader(path)
        self._outputs[path] = ran.out
        return ran

    def output(self, path: Path) -> str:
        """What the script has printed, the last time that it was run."""
        return self._outputs[path] if path in self._outputs else self.run(path).out

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def run_as_reader(path: Path, *arguments: str, **environment: str) -> Ran:
    ended = subprocess.run(
        [sys.executable, str(path), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=SCRIPT_TIMEOUT,
        env={**os.environ, "PYTHONUTF8": "1", **environment},
    )
    return Ran(ended.returncode, ended.stdout, ended.stderr)


@pytest.fixture(scope="session")
def reader() -> Iterator[Reader]:
    reader = Reader()
    yield reader
    reader.close()


@pytest.fixture
def script(request: pytest.FixtureRequest, reader: Reader) -> RunScript:
    """`script("broken_agents.py")` runs the script beside the test as a reader does."""

    def run(name: str, *arguments: str, **environment: str) -> Ran:
        path = (request.path.parent / name).resolve()
        return reader.run(path, *arguments, **environment)

    return run


@pytest.fixture
def stale(reader: Reader) -> Stale:
    """`stale(README)`: see `racelab.readme.stale_blocks`."""
    return partial(stale_blocks, first=reader.output)


@pytest.fixture
def lesson(request: pytest.FixtureRequest) -> Load:
    """`lesson("broken_agents.py")` is the script beside the test as a module."""

    def load(name: str) -> ModuleType:
        return load_script(request.path.parent / name)

    return load


@pytest.fixture
def play(session_server: LocalServer, lesson: Load) -> RunScript:
    """`play("broken_agents.py")` runs its `main()` here, ten times as fast as usual.

    More arguments replace constants of the script: `play("benchmark_x.py", N=2)`.
    """

    def run(name: str, speed: float = 10.0, **constants: object) -> Ran:
        module = lesson(name)
        vars(module).update(constants)
        out, err = StringIO(), StringIO()
        with (
            share(session_server, speed),
            redirect_stdout(out),
            redirect_stderr(err),
            pytest.raises(SystemExit) as end,
        ):
            start(module.main)
        status = end.value.code
        assert isinstance(status, int)
        return Ran(status, out.getvalue(), err.getvalue())

    return run


async def until(server: "Server", **wanted: int) -> Stats:
    """The first counts of an in-loop server that agree with these.

    Waits turns of the loop, not seconds; raises TimeoutError after PATIENCE.
    """

    def there() -> bool:
        stats = server.stats()
        return all(getattr(stats, name) == value for name, value in wanted.items())

    async with asyncio.timeout(PATIENCE):
        while not there():  # noqa: ASYNC110 - a count has no event
            await asyncio.sleep(0)
    return server.stats()


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
