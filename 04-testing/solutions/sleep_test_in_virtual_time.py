"""
Exercise 1: the test waits for an hour, in virtual time, and is right each time.

Run:   python solutions/sleep_test_in_virtual_time.py
Next:  exercise 2
Real:  https://github.com/openai/openai-agents-python/pull/4165
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable

from racelab import Ask, start, table, verdict
from racelab.explore import clock
from racelab.seeds import fraction_of

RUNS = 200
ENOUGH = 3600  # seconds that the test waits
SLOW = 0.02  # seconds for an answer, one time in eight; else it is there at once


async def research(ask: Ask, report: list[str], saved: Callable[[], object]) -> None:
    """The code under test, and it is right. It runs in the background."""
    report.append(await ask("What could go wrong?"))
    saved()


def model(number: int) -> Ask:
    """A model that is slow in some of the runs, and the same on every machine."""

    async def ask(question: str) -> str:
        if fraction_of(0, "slow", number) < 1 / 8:
            await asyncio.sleep(SLOW)
        return f"On {question!r}: the price."

    return ask


async def a_finding_is_saved(ask: Ask) -> bool:
    """The test: whoever starts a research finds its answer in the report."""
    report: list[str] = []
    task = asyncio.create_task(research(ask, report, lambda: None))
    # Long enough on any machine: no answer takes an hour.
    await asyncio.sleep(ENOUGH)
    passed = len(report) == 1
    await task
    return passed


async def run() -> Counter[bool]:
    """Run the test again and again; give how often it passed, and how often not."""
    return Counter([await a_finding_is_saved(model(n)) for n in range(RUNS)])


def main() -> int:
    began = time.perf_counter()
    said = clock.run(run())
    took = time.perf_counter() - began
    print(table(("passed", said[True]), ("failed", said[False])))
    print(f"{RUNS} runs took {took:.1f} s")
    right = said[True]  # the code is right, so each failure is a false alarm
    return verdict(right == RUNS, f"{right} of {RUNS} verdicts on right code are right")


if __name__ == "__main__":
    start(main)
