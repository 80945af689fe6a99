"""Models for tests that only yield, so that a test chooses the order of answers."""

import asyncio
import random

from racelab.model import Ask

LONGEST = 30  # turns of the event loop until an answer


def fake_ask(seed: int) -> Ask:
    """Return an `ask` without server or clock that answers after turns of the loop.

    The turns are drawn from `seed`, so each seed is an order in which answers arrive,
    the same on every run. An answer contains its question.
    """
    turns = random.Random(seed)

    async def ask(question: str) -> str:
        for _ in range(turns.randint(1, LONGEST)):
            await asyncio.sleep(0)
        return f"On {question!r}: yes."

    return ask


class CountedAsk:
    """An `ask` that counts its calls, and the most that were in flight at once."""

    def __init__(self, ask: Ask) -> None:
        self.calls = self.in_flight = self.most = 0
        self._ask = ask

    async def __call__(self, question: str) -> str:
        self.calls += 1
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            return await self._ask(question)
        finally:
            self.in_flight -= 1
