"""Options of the simulated runs, which `test_simulation.py` explains."""

import pytest

BLOCK = 100  # runs in one test
RUNS, LONG_RUNS = 300, 2000  # by default, and with --long


def pytest_addoption(parser: pytest.Parser) -> None:
    text = f"how many runs to simulate (default: {RUNS}, with --long {LONG_RUNS})"
    parser.addoption("--simulations", type=int, metavar="N", help=text)
    text = "the seed of the first simulated run (default: 0)"
    parser.addoption("--seed", type=int, default=0, metavar="N", help=text)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seeds" in metafunc.fixturenames:
        config = metafunc.config
        is_long = config.getoption("--long", default=False)
        runs = config.getoption("--simulations") or (LONG_RUNS if is_long else RUNS)
        first = config.getoption("--seed")
        starts = range(first, first + runs, BLOCK)
        blocks = [range(start, min(start + BLOCK, first + runs)) for start in starts]
        metafunc.parametrize("seeds", blocks, ids=lambda b: f"{b.start}-{b.stop - 1}")


@pytest.fixture
def is_one(pytestconfig: pytest.Config) -> bool:
    """Return whether just one run is asked for, so that it is shown."""
    return bool(pytestconfig.getoption("--simulations") == 1)
