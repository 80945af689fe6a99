"""Ctrl-C and SIGTERM: once to finish what is in flight, twice to leave at once."""

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from agents import Journal, Limits, Outcome, Shutdown, Team, stop_on_signals

HANG_TIMEOUT = 120  # seconds, for something that takes none
QUESTIONS = [str(number) for number in range(10)]
TWO = Limits(concurrency=2)


class SlowModel:
    """Takes its time, and knows what it was asked."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.asked: list[str] = []

    async def __call__(self, question: str) -> str:
        self.asked.append(question)
        await asyncio.sleep(self.seconds)
        return "Yes."


async def run(
    team: Team, *signals: tuple[float, int]
) -> tuple[Shutdown, list[Outcome]]:
    """All outcomes of a run in which these signals come at these seconds."""
    loop = asyncio.get_running_loop()
    for at, number in signals:
        loop.call_at(at, signal.raise_signal, number)
    async with team:
        with stop_on_signals(team, grace=5) as stop:
            return stop, [outcome async for outcome in team.run(QUESTIONS)]


def ends(outcomes: list[Outcome]) -> Counter[str]:
    return Counter(o.failure.kind if o.failure else "answered" for o in outcomes)


@pytest.mark.virtual_time
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_first_signal_drains_the_team(number: int, tmp_path: Path) -> None:
    model = SlowModel(seconds=3)
    with Journal(tmp_path / "run.db") as journal:
        stop, outcomes = await run(Team(model, TWO, journal=journal), (4, number))
        kept = [q for q in QUESTIONS if journal.lookup(q)]
    assert asyncio.get_running_loop().time() == 6
    assert ends(outcomes) == {"answered": 4, "cancelled": 6}
    assert kept == model.asked == QUESTIONS[:4]
    assert sorted(outcome.question for outcome in outcomes) == QUESTIONS
    assert stop.status == 128 + number


@pytest.mark.virtual_time
async def test_what_takes_longer_than_the_grace_is_cancelled() -> None:
    stop, outcomes = await run(Team(SlowModel(100), TWO), (1, signal.SIGINT))
    assert asyncio.get_running_loop().time() == 6
    assert ends(outcomes) == {"cancelled": 10}
    assert stop.status == 130


@pytest.mark.virtual_time
async def test_second_signal_cancels_and_first_sets_the_status() -> None:
    signals = [(1, signal.SIGTERM), (2, signal.SIGINT), (2, signal.SIGINT)]
    stop, outcomes = await run(Team(SlowModel(100), TWO), *signals)
    assert asyncio.get_running_loop().time() == 2
    assert ends(outcomes) == {"cancelled": 10}
    assert stop.status == 143


@pytest.mark.virtual_time
async def test_without_a_signal_the_status_is_0() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    stop, outcomes = await run(Team(SlowModel(1), TWO))
    assert ends(outcomes) == {"answered": 10}
    assert (stop.status, stop.signal) == (0, None)
    assert [signal.getsignal(number) for number in numbers] == before


# Answers two questions, and the rest only after a signal, if at all.
CHILD = """
import asyncio, sys
from agents import Limits, Team, stop_on_signals

async def main():
    async def ask(question):
        if int(question) > 1:
            print("waits", flush=True)
            while stop.signal is None:
                await asyncio.sleep(0.001)
            print("stops", flush=True)
            await asyncio.sleep({then})
        return "Yes."

    async with Team(ask, Limits(concurrency=1, timeout=600)) as team:
        with stop_on_signals(team, grace=600) as stop:
            async for outcome in team.run(map(str, range(5)), in_order=True):
                failure = outcome.failure
                print(outcome.question, failure.kind if failure else "ok")
    return stop.status

sys.exit(asyncio.run(main()))
"""


@pytest.mark.skipif(os.name == "nt", reason="signals as Unix has them")
@pytest.mark.parametrize(
    ("signals", "then", "third"),
    [
        ([signal.SIGINT], 0, "ok"),
        ([signal.SIGTERM, signal.SIGTERM], 600, "cancelled"),
    ],
    ids=["once", "twice"],
)
def test_process_prints_its_outcomes_and_its_status(
    signals: list[signal.Signals], then: float, third: str
) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", CHILD.format(then=then)],
        cwd=Path(__file__).parents[1],
        stdout=pipe,
        stderr=pipe,
        text=True,
    ) as process:
        assert process.stdout is not None
        for number, word in zip(signals, ["waits", "stops"], strict=False):
            while process.stdout.readline().strip() not in (word, ""):
                pass
            process.send_signal(number)
        out, err = process.communicate(timeout=HANG_TIMEOUT)
    assert err == ""
    assert out.split("\n")[-4:] == [f"2 {third}", "3 cancelled", "4 cancelled", ""]
    assert process.returncode == 128 + signals[0]
