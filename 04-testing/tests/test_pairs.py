"""What the tests in the scripts are worth.

The fixed ones fail code that is wrong, and pass code that is right.
"""

import asyncio
from pathlib import Path
from typing import Any

import openai
import pytest

from racelab import Ask, LocalServer, Timeline
from racelab.explore import cancel_everywhere, clock, replay
from racelab.pytest.run_scripts import LoadScript, Reader, RunScript

# sleep_test


async def test_the_sleeping_test_fails_right_code_when_an_answer_is_slow(
    load_script: LoadScript,
) -> None:
    module = load_script("broken_sleep_test.py")
    passed = [await module.a_finding_is_saved(module.model(n)) for n in range(50)]
    slow = [module.fraction_of(0, "slow", n) < 1 / 8 for n in range(50)]
    assert passed == [not is_slow for is_slow in slow]
    assert True in passed
    assert False in passed


def test_the_waiting_test_fails_code_that_saves_nothing(
    load_script: LoadScript, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load_script("fixed_sleep_test.py")

    async def forgets(ask: Ask, *report_and_event: object) -> None:
        await ask("What could go wrong?")

    monkeypatch.setattr(module, "research", forgets)
    with pytest.raises(TimeoutError):
        clock.run(module.a_finding_is_saved(module.model(0)))


# stress_test


def test_the_order_that_the_explorer_found_fails_in_every_run(
    load_script: LoadScript, repeats: int
) -> None:
    module = load_script("solutions/stress_test_replayed.py")
    for _ in range(5 * repeats):
        report = replay(module.run, module.SCHEDULE, module.holds, agents=module.AGENTS)
        assert report.kind == "invariant"


def test_the_explorer_still_finds_the_order_that_the_solution_replays(
    load_script: LoadScript, chapter: Path, reader: Reader
) -> None:
    schedule = load_script("solutions/stress_test_replayed.py").SCHEDULE
    assert schedule in reader.output(chapter / "fixed_stress_test.py")


def test_the_code_under_stress_is_right_when_nobody_comes_and_goes(
    load_script: LoadScript,
) -> None:
    module = load_script("fixed_stress_test.py")
    in_turn = "editor#1 editor#2 editor#3 scout#1 critic#1 scout#2 critic#2 editor#4"
    assert replay(module.run, in_turn, module.holds, agents=module.AGENTS).holds


# slot_leak


@pytest.mark.parametrize("name", ["broken_slot_leak.py", "fixed_slot_leak.py"])
def test_the_slot_is_lost_at_the_first_of_three_awaits(
    name: str, load_script: LoadScript
) -> None:
    module = load_script(name)
    left = []
    for seconds in (0.5, 1.5, 2.5):
        slots = module.Slots()

        async def ask(question: str) -> str:
            await asyncio.sleep(1)
            return question

        async def main(slots: Any = slots, seconds: float = seconds) -> None:
            call = module.run(slots, ask, Timeline("scout"))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(call, seconds)

        clock.run(main())
        left.append(slots.free)
    assert left == [module.SLOTS - 1, module.SLOTS, module.SLOTS]


def test_cancelling_everywhere_passes_code_that_gives_its_slot_back(
    load_script: LoadScript,
) -> None:
    module = load_script("fixed_slot_leak.py")
    slots = module.Slots()

    async def tidy(ask: Ask, timeline: Timeline) -> None:
        slots.free -= 1
        try:
            await ask("Scout, which tool fits?")
            await ask("Scout, use it.")
        finally:
            slots.free += 1

    report = cancel_everywhere(
        tidy, lambda: slots.free == module.SLOTS, agents=("scout",)
    )
    assert report.holds, report
    assert report.exhausted


# mock_only


def test_the_sdk_tries_each_call_three_times(model_server: LocalServer) -> None:
    client = openai.AsyncOpenAI(base_url=model_server.base_url, api_key="any")
    assert 1 + client.max_retries == 3


def test_every_order_says_what_it_has_counted(
    run_inprocess: RunScript, load_script: LoadScript
) -> None:
    ran = run_inprocess("every_order.py", PAIRS=load_script("every_order.py").PAIRS[:3])
    assert (ran.status, ran.word) == (0, "RESULT"), ran
    held, played, fixed_held, fixed_played = ran.numbers
    assert held == 0 < played
    assert fixed_held == fixed_played > 0
