"""Models for tests: they only yield, and answer in an order of our choice."""

import asyncio
import random

from racelab.model import Ask

LONGEST = 30  # turns of the event loop until an answer


def fake_ask(seed: int) -> Ask:
    """An `ask` without server or clock: an answer comes after some turns of the loop.

    The turns are drawn from `seed`, so each seed is an order in which answers arrive,
    the same on every run. An answer contains its question.
    """
    turns = random.Random(seed)

    async def ask(question: str) -> str:
        for _ in range(turns.randint(1, LONGEST)):
            await asyncio.sleep(0)
        return f"On {question!r}: yes."

    return ask
