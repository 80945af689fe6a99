"""What the tests of all folders share: a server, scripts to run, and a guard.

Loaded by `.pytest.ini`. Fixtures:

- `model_server`: one local model server per session, reset before each test;
- `script`: run a script as a reader does, in a process of its own;
- `lesson`: load a script as a module, to call its `run(...)`;
- `play`: run a script's `main()` in this process, on the session's server;
- `stale`: the blocks of a README that its scripts no longer print.
"""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from types import ModuleType

import pytest

from racelab import guard
from racelab.process import LocalServer, local_server, share
from racelab.readme import stale_blocks
from racelab.script import start
from racelab.settings import Settings

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


@pytest.fixture
def script(request: pytest.FixtureRequest, outputs: dict[Path, str]) -> RunScript:
    """`script("broken_agents.py")` runs the script beside the test as a reader does."""

    def run(name: str, *arguments: str, **environment: str) -> Ran:
        path = (request.path.parent / name).resolve()
        ended = subprocess.run(
            [sys.executable, str(path), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=SCRIPT_TIMEOUT,
            env={**os.environ, "PYTHONUTF8": "1", **environment},
        )
        if not arguments and not environment:
            outputs[path] = ended.stdout
        return Ran(ended.returncode, ended.stdout, ended.stderr)

    return run


@pytest.fixture(scope="session")
def outputs() -> dict[Path, str]:
    """What the scripts have printed that `script` has run in this session."""
    return {}


@pytest.fixture
def stale(outputs: dict[Path, str]) -> Stale:
    """`stale(README)`: see `racelab.readme.stale_blocks`."""
    return partial(stale_blocks, known=outputs)


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
