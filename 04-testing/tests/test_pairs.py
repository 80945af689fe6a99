"""What the tests in the scripts are worth.

The fixed ones fail code that is wrong, and pass code that is right.
"""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from racelab import Ask, Timeline
from racelab.explore import cancel_everywhere, clock, replay
from racelab.pytest.run_scripts import LoadScript, Reader

# sleep_test


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


def test_replayed_order_fails_in_every_run(
    load_script: LoadScript, repeats: int
) -> None:
    module = load_script("solutions/stress_test_replayed.py")
    for _ in range(5 * repeats):
        report = replay(module.run, module.SCHEDULE, module.holds, agents=module.AGENTS)
        assert report.kind == "invariant"


def test_explorer_still_finds_the_order_to_replay(
    load_script: LoadScript, chapter: Path, reader: Reader
) -> None:
    schedule = load_script("solutions/stress_test_replayed.py").SCHEDULE
    assert schedule in reader.output(chapter / "fixed_stress_test.py")


def test_code_under_stress_is_right_one_at_a_time(
    load_script: LoadScript,
) -> None:
    module = load_script("fixed_stress_test.py")
    in_turn = "editor#1 editor#2 editor#3 scout#1 critic#1 scout#2 critic#2 editor#4"
    assert replay(module.run, in_turn, module.holds, agents=module.AGENTS).holds


# slot_leak


@pytest.mark.parametrize("name", ["broken_slot_leak.py", "fixed_slot_leak.py"])
def test_slot_is_lost_at_the_first_await(name: str, load_script: LoadScript) -> None:
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
