"""Virtual time: when no task can run, the clock jumps to the next timer.

Timeouts, backoff and rate limits are exact, and a day of them takes milliseconds.
Nothing in the code under test changes: it sleeps with `asyncio.sleep`, as always. Time
passes only while all tasks wait, so your test can check "after 7 seconds" with `==`.
"""

import asyncio

import pytest

from racelab import Ask
from racelab.explore import clock

DAY = 24 * 60 * 60


async def persistent(question: str, ask: Ask) -> str:
    """Ask at most five times, with 1, 2, 4 and 8 seconds between the tries."""
    for pause in (1, 2, 4, 8):
        try:
            return await ask(question)
        except ConnectionError:
            await asyncio.sleep(pause)
    return await ask(question)


async def paced(questions: int, per_minute: int, ask: Ask) -> list[str]:
    """Ask no more than `per_minute` questions a minute."""
    answers = []
    for number in range(questions):
        answers.append(await ask(f"Topic {number}?"))
        await asyncio.sleep(60 / per_minute)
    return answers


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.mark.virtual_time
async def test_three_failures_take_seven_seconds_exactly() -> None:
    failures = [ConnectionError("down")] * 3

    async def recovers(question: str) -> str:
        if failures:
            raise failures.pop()
        return "Yes."

    began = now()
    assert await persistent("Ready?", recovers) == "Yes."
    assert now() - began == 1 + 2 + 4


@pytest.mark.virtual_time
async def test_a_deadline_cuts_the_third_pause_short() -> None:
    async def down(question: str) -> str:
        raise ConnectionError(question)

    began = now()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(5):
            await persistent("Ready?", down)
    assert now() - began == 5


def test_a_day_under_a_rate_limit_takes_no_time() -> None:
    async def answer(question: str) -> str:
        return "Yes."

    async def a_day() -> tuple[int, float]:
        return len(await paced(DAY // 10, 6, answer)), now()

    assert clock.run(a_day()) == (8_640, DAY)  # without the marker
