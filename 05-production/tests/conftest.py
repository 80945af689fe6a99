"""Options of the simulated runs, which `test_simulation.py` explains."""

import pytest

BLOCK = 100  # runs in one test


def pytest_addoption(parser: pytest.Parser) -> None:
    options = (
        ("--simulations", 2000, "how many runs to simulate (default: 2000)"),
        ("--seed", 0, "the seed of the first simulated run (default: 0)"),
    )
    for name, default, says in options:
        parser.addoption(name, type=int, default=default, metavar="N", help=says)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seeds" in metafunc.fixturenames:
        first = metafunc.config.getoption("--seed")
        end = first + metafunc.config.getoption("--simulations")
        starts = range(first, end, BLOCK)
        blocks = [range(start, min(start + BLOCK, end)) for start in starts]
        metafunc.parametrize("seeds", blocks, ids=lambda b: f"{b.start}-{b.stop - 1}")


@pytest.fixture
def is_one(pytestconfig: pytest.Config) -> bool:
    """Whether just one run is asked for: then it is shown."""
    return bool(pytestconfig.getoption("--simulations") == 1)
