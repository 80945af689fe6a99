"""Force the order: events in the fake decide which question is answered when.

Most races need two answers in one certain order. A fake that holds back each answer
until the one before it is out makes that order happen on every run, without a sleep.
The same test is red with the race and green with its fix.
"""

import asyncio

import pytest

from racelab import Ask


class Screen:
    """Shows the answer to the newest question."""

    shown = newest = ""

    async def racy(self, question: str, ask: Ask) -> None:
        self.shown = await ask(question)

    async def right(self, question: str, ask: Ask) -> None:
        self.newest = question
        answer = await ask(question)
        if self.newest == question:  # no newer question was asked
            self.shown = answer


def answers_in_order(*order: str) -> Ask:
    """Return a model that answers these questions in this order."""
    answered = {question: asyncio.Event() for question in order}

    async def ask(question: str) -> str:
        place = order.index(question)
        if place > 0:
            await answered[order[place - 1]].wait()
        answered[question].set()
        return f"on {question}"

    return ask


@pytest.mark.parametrize(
    ("method", "order", "shown"),
    [
        ("racy", ("old", "new"), "on new"),
        ("racy", ("new", "old"), "on old"),  # the race
        ("right", ("old", "new"), "on new"),
        ("right", ("new", "old"), "on new"),
    ],
)
async def test_a_late_answer_does_not_replace_a_newer_one(
    method: str, order: tuple[str, ...], shown: str
) -> None:
    screen, ask = Screen(), answers_in_order(*order)
    show = getattr(screen, method)
    await asyncio.gather(show("old", ask), show("new", ask))
    assert screen.shown == shown
