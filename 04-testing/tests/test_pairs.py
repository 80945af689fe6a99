"""The pairs of this chapter: a test that gives the wrong verdict, and the right one.

Each pair both ways with the same check, as a reader runs it and many times in-process;
and what the tests in the scripts are worth: the fixed ones fail code that is wrong, and
pass code that is right.
"""

import asyncio
from pathlib import Path
from typing import Any

import openai
import pytest

from racelab import Ask, LocalServer, Timeline
from racelab.explore import cancel_everywhere, clock, replay
from racelab.pytest.plugin import LoadScript, Reader, RunScript, Stale

HERE = Path(__file__).parents[1]
NUMBERS = {  # the first two in the last lines
    "broken_sleep_test.py": (169, 200),
    "fixed_sleep_test.py": (200, 200),
    "broken_stress_test.py": (0, 1),
    "fixed_stress_test.py": (1, 1),
    "broken_slot_leak.py": (0, 1),
    "fixed_slot_leak.py": (1, 1),
    "broken_mock_only.py": (3, 9),
    "fixed_mock_only.py": (9, 9),
}
CHANGED: dict[str, dict[str, float]] = {  # constants, where it is played many times
    "broken_sleep_test.py": {"ENOUGH": 0.001, "SLOW": 0.002, "RUNS": 50},
    "fixed_sleep_test.py": {"SLOW": 0.001, "RUNS": 50},
    "broken_stress_test.py": {"RUNS": 100},
}


def status(name: str) -> int:
    return 1 if name.startswith("broken_") else 0


@pytest.mark.parametrize("name", NUMBERS)
def test_a_reader_sees_the_wrong_verdict_and_the_right_one(
    name: str, script: RunScript, pytestconfig: pytest.Config
) -> None:
    for _ in range(pytestconfig.getoption("--script-runs")):
        ran = script(name)
        assert (ran.status, ran.err) == (status(name), ""), ran
        assert ran.word == ("BROKEN" if ran.status else "OK"), ran
        assert ran.numbers[:2] == NUMBERS[name], ran


@pytest.mark.parametrize("name", [n for n in NUMBERS if n != "fixed_stress_test.py"])
def test_every_run_ends_the_same(name: str, run_inprocess: RunScript) -> None:
    runs = [run_inprocess(name, **CHANGED.get(name, {})) for _ in range(3)]
    assert {ran.status for ran in runs} == {status(name)}
    assert len({ran.last_line for ran in runs}) == 1


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


def test_the_order_that_the_explorer_found_fails_100_times_of_100(
    load_script: LoadScript,
) -> None:
    module = load_script("solutions/stress_test_replayed.py")
    for _ in range(100):
        report = replay(module.run, module.SCHEDULE, module.holds, agents=module.AGENTS)
        assert report.kind == "invariant"


def test_the_explorer_still_finds_the_order_that_the_solution_replays(
    load_script: LoadScript, reader: Reader
) -> None:
    schedule = load_script("solutions/stress_test_replayed.py").SCHEDULE
    assert schedule in reader.output(HERE / "fixed_stress_test.py")


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


# The README


def test_the_readme_shows_what_the_scripts_print(stale: Stale) -> None:
    assert stale(HERE / "README.md") == []


SOLUTIONS = {
    "sleep_test_in_virtual_time": "OK: 200 of 200 verdicts on right code are right",
    "stress_test_replayed": "OK: found 1 of 1 bugs in 1 runs",
    "mock_only_retried_once": "OK: the test saw 3 of 3 requests",
}


@pytest.mark.parametrize("solution", SOLUTIONS)
def test_a_solution_reaches_the_verdict_of_its_exercise(
    solution: str, run_inprocess: RunScript
) -> None:
    assert run_inprocess(f"solutions/{solution}.py").last_line == SOLUTIONS[solution]
    assert f"`{SOLUTIONS[solution]}`" in (HERE / "README.md").read_text("utf-8")


def test_every_order_says_what_it_has_counted(
    run_inprocess: RunScript, load_script: LoadScript
) -> None:
    ran = run_inprocess("every_order.py", PAIRS=load_script("every_order.py").PAIRS[:3])
    assert (ran.status, ran.word) == (0, "RESULT"), ran
    held, played, fixed_held, fixed_played = ran.numbers
    assert held == 0 < played
    assert fixed_held == fixed_played > 0
