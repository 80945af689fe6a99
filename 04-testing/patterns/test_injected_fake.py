"""Inject a fake model: an `async def` of three lines, no key, no network, no mock.

Code that takes its model as an argument can be given any: one that answers, one that
fails, one that writes down what it was asked. A fake is a function with the same
signature. A mock says yes to everything, even to a call that the model does not have.
"""

import asyncio

import pytest

from racelab import Ask


async def review(plans: list[str], ask: Ask) -> dict[str, str]:
    """The code under test: one review for each plan; a failed one is left out."""
    replies = await asyncio.gather(
        *(ask(f"Review: {plan}") for plan in plans), return_exceptions=True
    )
    pairs = zip(plans, replies, strict=True)
    return {plan: reply for plan, reply in pairs if isinstance(reply, str)}


async def test_each_review_stands_under_its_plan() -> None:
    async def echo(question: str) -> str:
        return f"{question}? Yes."

    reviews = await review(["launch", "pause"], echo)
    assert reviews == {"launch": "Review: launch? Yes.", "pause": "Review: pause? Yes."}


async def test_one_failed_call_does_not_lose_the_others() -> None:
    async def fails_for_launch(question: str) -> str:
        if "launch" in question:
            raise ConnectionError(question)
        return "Yes."

    assert await review(["launch", "pause"], fails_for_launch) == {"pause": "Yes."}


@pytest.mark.parametrize("plans", [[], ["launch"], ["launch", "pause"]])
async def test_a_plan_costs_one_call(plans: list[str]) -> None:
    asked: list[str] = []

    async def notes(question: str) -> str:
        asked.append(question)
        return "Yes."

    await review(plans, notes)
    assert asked == [f"Review: {plan}" for plan in plans]
