"""The pytest plugin of all folders: a server, scripts to run, and a guard.

Loaded by `.pytest.ini`. Fixtures:

- `model_server`: one local model server per session, reset before each test;
- `script`: run a script as a reader does, in a process of its own;
- `load_script`: load a script as a module, to call its `run(...)`;
- `run_inprocess`: run a script's `main()` in this process, on the session's server;
- `switch_intervals`: threads take turns as usual, and then as often as they can;
- `repeats`: how often a test repeats a run that must always end the same;
- `load_report`: what load tests measure, printed at the end, see `racelab.pytest.load`.

Markers: `virtual_time` runs an async test in virtual time, see `racelab.explore.clock`;
`long` is for tests that run only with `--long`; `load` is for load tests, which are
longer with `--long`.
"""

import inspect
import os
import sys
from collections.abc import Generator, Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from types import ModuleType

import pytest

from racelab import guard
from racelab.explore import clock
from racelab.process import LocalServer, local_server, reuse_server
from racelab.pytest.load import LoadReport, why_not_to
from racelab.pytest.run_scripts import (
    LoadScript,
    Ran,
    Reader,
    RunScript,
    chapter_of,
)
from racelab.script import load_script, start
from racelab.settings import Settings

MARKERS = (
    "virtual_time: run an async test in virtual time (racelab.explore.clock)",
    "long: run this test only with --long",
    "load: a load test, longer with --long",
)
# Runs that show a race of threads, by switch interval in seconds (0.005 is Python's).
SWITCHES = {0.005: 50, 1e-6: 10}
REPEATS = 3
LONG_SWITCHES = 10  # times as many switched runs with --long, and
LONG_REPEATS = 20
LOADS = pytest.StashKey[LoadReport]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--script-runs",
        type=int,
        default=1,
        metavar="N",
        help="run each broken_ and fixed_ script N times as a reader does (default: 1)",
    )
    parser.addoption(
        "--long",
        action="store_true",
        help="also run what is long: benchmarks, more repeats, loads of 1,000 agents",
    )
    parser.addoption(
        "--chart",
        type=Path,
        metavar="FILE.svg",
        help="draw what the load tests have measured (needs matplotlib)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Make sure that tests spend no money, and never leave this machine."""
    pytest.register_assert_rewrite("racelab.pytest.chapter_tests")
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)
    file = config.getoption("--chart")
    if file is not None and (why := why_not_to(file)):
        raise pytest.UsageError(f"--chart {file}: {why}")
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_MODEL"):
        os.environ.pop(name, None)
    os.environ["RACELAB_LOCAL"] = "1"
    # A folder without certificates: nothing here speaks TLS, and loading those of the
    # system takes each new client 50 ms.
    os.environ["SSL_CERT_DIR"] = str(Path(__file__).parent)
    guard.install()


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Skip what is long, and put last what waits for scripts that run meanwhile."""
    items.sort(key=waits_for_scripts)
    if config.getoption("--long"):
        return
    skip = pytest.mark.skip(reason="only with --long")
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(skip)


def waits_for_scripts(item: pytest.Item) -> bool:
    """Return whether a test itself asks for the `reader`."""
    test = getattr(item, "function", None)
    return test is not None and "reader" in inspect.signature(test).parameters


def pytest_runtest_setup() -> None:
    guard.blocked.clear()


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
    """Run a test marked `virtual_time` so that an hour of waiting takes no time.

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
    """Print what the load tests have measured."""
    loads = config.stash.get(LOADS, LoadReport())
    if not loads.rows:
        return
    terminalreporter.section("load")
    terminalreporter.line(str(loads))
    if (file := config.getoption("--chart")) is not None:
        loads.draw(file)
        terminalreporter.line(f"chart: {file}")


@pytest.fixture(scope="session")
def session_server() -> Iterator[LocalServer]:
    with local_server() as server:
        yield server


@pytest.fixture
def model_server(session_server: LocalServer) -> LocalServer:
    """The session's server, with default settings and all counts at zero."""
    session_server.reset(Settings())
    return session_server


@pytest.fixture(scope="session", autouse=True)
def reader(request: pytest.FixtureRequest) -> Iterator[Reader]:
    """A reader who runs ahead the scripts that `racelab.pytest.chapter_tests` needs.

    It begins with the first test of the session, whichever that is.
    """
    tests = [each for each in request.session.items if hasattr(each, "callspec")]
    scripts = [test.callspec.params.get("readers_script") for test in tests]
    reader = Reader(script for script in scripts if script is not None)
    yield reader
    reader.close()


@pytest.fixture
def chapter(request: pytest.FixtureRequest) -> Path:
    """The folder of the chapter that the test is in."""
    return chapter_of(request.path)


@pytest.fixture
def script(chapter: Path, reader: Reader) -> RunScript:
    """`script("broken_agents.py")` runs a script of the chapter as a reader does."""

    def run(name: str, *arguments: str, **environment: str) -> Ran:
        return reader.run((chapter / name).resolve(), *arguments, **environment)

    return run


@pytest.fixture(name="load_script")
def load_script_of_chapter(chapter: Path) -> LoadScript:
    """`load_script("broken_agents.py")` is a script of the chapter as a module."""

    def load(name: str) -> ModuleType:
        return load_script(chapter / name)

    return load


@pytest.fixture
def repeats(pytestconfig: pytest.Config) -> int:
    """How often a test repeats a run that must always end the same."""
    return LONG_REPEATS if pytestconfig.getoption("--long") else REPEATS


@pytest.fixture(params=SWITCHES, ids="switch every {} s".format)
def switch_intervals(
    request: pytest.FixtureRequest, pytestconfig: pytest.Config
) -> Iterator[range]:
    """Threads take turns as usual, then as often as Python can.

    `for _ in switch_intervals` repeats a run as often as it takes to show a race.
    """
    more = LONG_SWITCHES if pytestconfig.getoption("--long") else 1
    before = sys.getswitchinterval()
    sys.setswitchinterval(request.param)
    yield range(more * SWITCHES[request.param])
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
