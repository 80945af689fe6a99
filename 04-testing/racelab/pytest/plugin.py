"""What the tests of all folders share: a server, scripts to run, and a guard.

Loaded by `.pytest.ini`. Fixtures:

- `model_server`: one local model server per session, reset before each test;
- `script`: run a script as a reader does, in a process of its own;
- `load_script`: load a script as a module, to call its `run(...)`;
- `run_inprocess`: run a script's `main()` in this process, on the session's server;
- `stale`: the blocks of a README that its scripts no longer print;
- `switch_intervals`: threads take turns as usual, and then as often as they can;
- `load_report`: what load tests measure, printed at the end, see `racelab.pytest.load`.

Markers: `virtual_time` runs an async test in virtual time, see `racelab.explore.clock`;
`load` is for load tests, which are longer with `--load`.
"""

import asyncio
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
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
from racelab.explore import clock
from racelab.process import LocalServer, local_server, reuse_server
from racelab.pytest import chart
from racelab.pytest.load import LoadReport
from racelab.pytest.readme import command_of, stale_blocks
from racelab.script import load_script, start
from racelab.settings import Settings, Stats

if TYPE_CHECKING:
    from racelab.server import Server

KINDS = ("broken_*.py", "fixed_*.py", "benchmark_*.py")
PATIENCE = 10.0  # seconds at most, for something that takes none
# Runs that show a race of threads, by switch interval in seconds (0.005 is Python's).
RUNS = {0.005: 500, 1e-6: 100}
LOADS = pytest.StashKey[LoadReport]()
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
LoadScript = Callable[[str], ModuleType]
Stale = Callable[[Path], list[str]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--script-runs",
        type=int,
        default=1,
        metavar="N",
        help="run each broken_ and fixed_ script N times as a reader does (default: 1)",
    )
    parser.addoption(
        "--load",
        action="store_true",
        help="run load tests in full, with up to 1,000 agents at the same time",
    )
    parser.addoption(
        "--chart",
        type=Path,
        metavar="FILE.svg",
        help="draw what the load tests have measured (needs matplotlib)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Tests never spend money, and never leave this machine."""
    config.addinivalue_line(
        "markers",
        "virtual_time: run an async test in virtual time (racelab.explore.clock)",
    )
    config.addinivalue_line("markers", "load: a load test, longer with --load")
    if (file := config.getoption("--chart")) is not None:
        try:
            chart.check(file)
        except chart.ChartError as error:
            raise pytest.UsageError(str(error)) from None
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


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """`@pytest.mark.virtual_time`: an hour of waiting takes no time.

    The same with any version of pytest-asyncio, or without it. Async fixtures live on
    another loop: what is bound to a loop is made in the test itself.
    """
    test = inspect.unwrap(pyfuncitem.obj)  # pytest-asyncio wraps it
    if pyfuncitem.get_closest_marker("virtual_time") is None:
        return None
    if not inspect.iscoroutinefunction(test):
        pytest.fail("virtual_time: only for async tests", pytrace=False)
    names = inspect.signature(test).parameters
    clock.run(test(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


@pytest.fixture(scope="session")
def load_report(pytestconfig: pytest.Config) -> LoadReport:
    return pytestconfig.stash.setdefault(LOADS, LoadReport())


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """What the load tests have measured."""
    loads = config.stash.get(LOADS, LoadReport())
    if not loads.rows:
        return
    terminalreporter.section("load")
    terminalreporter.line(str(loads))
    if (file := config.getoption("--chart")) is not None:
        loads.chart().save(file)
        terminalreporter.line(f"chart: {file}")


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

    All scripts of these folders start to run in the background at once, two at a time
    and in order: most of a run is imports and waiting, and meanwhile tests go on.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self._pool = ThreadPoolExecutor(max_workers=2)
        self._outputs: dict[Path, str] = {}
        self._ahead: dict[Path, Future[Ran]] = {
            script: self._pool.submit(run_as_reader, script)
            for folder in folders
            for kind in KINDS
            for script in sorted(folder.glob(kind))
        }

    def run(self, path: Path, *arguments: str, **environment: str) -> Ran:
        if arguments or environment:
            return run_as_reader(path, *arguments, **environment)
        ahead = self._ahead.pop(path, None)
        ran = ahead.result() if ahead else run_as_reader(path)
        self._outputs[path] = ran.out
        return ran

    def output(self, path: Path) -> str:
        """What the script has printed, the last time that it was run."""
        return self._outputs[path] if path in self._outputs else self.run(path).out

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def chapter_of(test: Path) -> Path:
    """The folder of the chapter whose `tests` or `patterns` this file is in."""
    return test.parents[1]


def run_as_reader(path: Path, *arguments: str, **environment: str) -> Ran:
    command, folder = command_of(path)
    ended = subprocess.run(
        [*command, *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=SCRIPT_TIMEOUT,
        env={**os.environ, "PYTHONUTF8": "1", **environment},
    )
    return Ran(ended.returncode, ended.stdout, ended.stderr)


@pytest.fixture(scope="session")
def reader(request: pytest.FixtureRequest) -> Iterator[Reader]:
    items = [
        item for item in request.session.items if isinstance(item, pytest.Function)
    ]
    asked = [item for item in items if {"script", "stale"} & set(item.fixturenames)]
    reader = Reader(dict.fromkeys(chapter_of(item.path) for item in asked))
    yield reader
    reader.close()


@pytest.fixture
def script(request: pytest.FixtureRequest, reader: Reader) -> RunScript:
    """`script("broken_agents.py")` runs a script of the chapter as a reader does."""

    def run(name: str, *arguments: str, **environment: str) -> Ran:
        path = (chapter_of(request.path) / name).resolve()
        return reader.run(path, *arguments, **environment)

    return run


@pytest.fixture
def stale(reader: Reader) -> Stale:
    """`stale(README)`: see `racelab.pytest.readme.stale_blocks`."""
    return partial(stale_blocks, first=reader.output)


@pytest.fixture(name="load_script")
def load_script_of_chapter(request: pytest.FixtureRequest) -> LoadScript:
    """`load_script("broken_agents.py")` is a script of the chapter as a module."""

    def load(name: str) -> ModuleType:
        return load_script(chapter_of(request.path) / name)

    return load


@pytest.fixture(params=RUNS, ids="switch every {} s".format)
def switch_intervals(request: pytest.FixtureRequest) -> Iterator[range]:
    """Threads take turns as usual, then as often as Python can.

    `for _ in switch_intervals` repeats a run as often as it takes to show a race.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(request.param)
    yield range(RUNS[request.param])
    sys.setswitchinterval(before)


@pytest.fixture
def run_inprocess(session_server: LocalServer, load_script: LoadScript) -> RunScript:
    """`run_inprocess("broken_agents.py")` runs its `main()` here, ten times as fast.

    More arguments replace constants: `run_inprocess("benchmark_x.py", N=2)`.
    """

    def run(name: str, speed: float = 10.0, **constants: object) -> Ran:
        module = load_script(name)
        vars(module).update(constants)
        out, err = StringIO(), StringIO()
        with (
            reuse_server(session_server, speed),
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
