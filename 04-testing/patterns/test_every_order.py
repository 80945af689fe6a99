"""Every order of the answers: the explorer finds the one that fails, or proves the fix.

`explore(run, holds)` runs the code once for each order in which its answers can arrive.
It returns the first order that fails as a line of names, which `replay` runs again. It
says that all orders hold only if it has tried all of them. `@for_every_order` makes a
test out of it. It works on any code that takes its model as an argument, as the pairs
of chapters 1 to 3 do.
"""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from racelab import Ask
from racelab.explore import explore, for_every_order, replay
from racelab.script import load_script

AGENTS = ("scout", "critic", "writer")
EVERY_ORDER = load_script(Path(__file__).parents[1] / "every_order.py")


async def racy(ask: Ask) -> str:
    """Return the report of the last agent in the list, if it is answered last."""
    report = ""

    async def research(agent: str) -> None:
        nonlocal report
        report = await ask(f"{agent}?")

    await asyncio.gather(*map(research, AGENTS))
    return report


async def right(ask: Ask) -> str:
    answers = await asyncio.gather(*(ask(f"{agent}?") for agent in AGENTS))
    return answers[-1]


def is_the_writers(report: str) -> bool:
    return "writer" in report


def test_an_order_that_fails_is_found_and_replayed() -> None:
    report = explore(racy, is_the_writers)
    assert report.failing == "research-3#1"  # the third is answered first
    for _ in range(100):
        assert not replay(racy, report.failing, is_the_writers).holds


@for_every_order
async def test_the_last_agent_is_last_in_the_report(ask: Ask) -> None:
    assert is_the_writers(await right(ask))


@pytest.mark.parametrize("pair", EVERY_ORDER.PAIRS, ids=lambda pair: pair.name)
def test_broken_breaks_and_fixed_holds_in_every_order(pair: Any) -> None:
    held, _ = EVERY_ORDER.count_orders(
        load_script(EVERY_ORDER.ROOT / pair.broken), pair
    )
    assert held == 0
    held, orders = EVERY_ORDER.count_orders(
        load_script(EVERY_ORDER.ROOT / pair.fixed), pair
    )
    assert held == orders > 1
