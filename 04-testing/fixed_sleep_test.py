"""
A test that waits for the event itself passes right code, always.

Run:   python fixed_sleep_test.py
Next:  python broken_stress_test.py
Real:  https://github.com/openai/openai-agents-python/pull/4165
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable

from racelab import Ask, start, table, verdict
from racelab.seeds import fraction_of

RUNS = 200
ENOUGH = 10  # seconds until the test gives up
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
    saved = asyncio.Event()
    task = asyncio.create_task(research(ask, report, saved.set))
    # As long as it takes, and no longer. Only code that is wrong costs ENOUGH.
    await asyncio.wait_for(saved.wait(), ENOUGH)
    passed = len(report) == 1
    await task
    return passed


async def run() -> Counter[bool]:
    """Run the test again and again; give how often it passed, and how often not."""
    return Counter([await a_finding_is_saved(model(n)) for n in range(RUNS)])


async def main() -> int:
    began = time.perf_counter()
    said = await run()
    took = time.perf_counter() - began
    print(table(("passed", said[True]), ("failed", said[False])))
    print(f"{RUNS} runs took {took:.1f} s")
    right = said[True]  # the code is right, so each failure is a false alarm
    return verdict(right == RUNS, f"{right} of {RUNS} verdicts on right code are right")


if __name__ == "__main__":
    start(main)
