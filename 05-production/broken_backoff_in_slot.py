"""
Calls that back off keep their slots, and no healthy call is answered before they retry.

Run:   python broken_backoff_in_slot.py
Next:  python fixed_backoff_in_slot.py
Real:  https://github.com/vectorize-io/hindsight/issues/3130
"""

import asyncio
from collections import Counter
from contextlib import suppress

from racelab import Ask, start, table, verdict
from racelab.explore import clock

SLOTS = 4
CALLS = ("large",) * 4 + ("small",) * 8  # by the model they ask; all want a slot now
LATENCY = 0.05  # seconds
PAUSES = (1.0, 2.0)  # seconds before the second and the third try


class Overloaded(Exception):
    """The model is too busy to answer."""


class Provider:
    """Stands for a large and a small model. The large one refuses each first try."""

    def __init__(self) -> None:
        self.asked = Counter[str]()
        self.answered: list[tuple[str, float]] = []  # which, and after how many seconds

    async def ask(self, question: str) -> str:
        self.asked[question] += 1
        model = question.split()[0]
        await asyncio.sleep(LATENCY)
        if model == "large" and self.asked[question] == 1:
            raise Overloaded
        self.answered.append((model, asyncio.get_running_loop().time()))
        return f"{question}: yes."


async def insist(question: str, ask: Ask, slots: asyncio.Semaphore) -> str:
    """Ask until there is an answer, with a pause before each new try."""
    async with slots:
        for pause in PAUSES:
            with suppress(Overloaded):
                return await ask(question)
            # Nothing is in flight here, and nobody else may use the slot.
            await asyncio.sleep(pause)
        return await ask(question)


async def run(ask: Ask) -> None:
    """Start all calls at the same time, and wait for all answers."""
    slots = asyncio.Semaphore(SLOTS)
    async with asyncio.TaskGroup() as group:
        for number, model in enumerate(CALLS):
            group.create_task(insist(f"{model} model, risk {number}?", ask, slots))


def main() -> int:
    provider = Provider()
    clock.run(run(provider.ask))  # in virtual time, which starts at 0 and is exact
    rows: list[tuple[object, ...]] = [("model", "calls", "first answer", "last answer")]
    for model, calls in Counter(CALLS).items():
        times = [at for which, at in provider.answered if which == model]
        rows.append((model, calls, f"{times[0]:.2f} s", f"{times[-1]:.2f} s"))
    print(table(*rows))
    answered = [which for which, _ in provider.answered]
    early, healthy = answered.index("large"), CALLS.count("small")
    says = f"answered {early} of {healthy} healthy calls before the first retry"
    return verdict(early == healthy, says)


if __name__ == "__main__":
    start(main)
