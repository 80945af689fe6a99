"""The benchmarks count what they say they count. Orders and counts, no durations."""

import re
import sys
from dataclasses import replace
from types import ModuleType

import pytest
from openai import AsyncOpenAI

import baselines
from agents import Limits
from racelab import Fault, LocalServer, ReaderError, Settings, Stats
from racelab.pytest.run_scripts import LoadScript, Ran, RunScript

RATE, FAULTS, MEMORY = (
    f"benchmark_{thing}.py" for thing in ("rate_limit", "faults", "memory")
)
TWO = ("gather", "agents")


def cells(ran: Ran, way: str) -> list[str]:
    """The first row of a way."""
    assert ran.status == 0, ran.err
    row = next(line for line in ran.out.splitlines() if line.startswith(way + "  "))
    return re.split(r"\s{2,}", row)[1:]


@pytest.mark.long
def test_rate_benchmark_counts_what_the_limit_refuses(
    run_inprocess: RunScript, load_script: LoadScript
) -> None:
    """Whether `agents` keeps to a rate is tested in virtual time, not here."""
    small = load_script(RATE).Size(8, 4, 5, 100_000, 10_000, 1)
    ran = run_inprocess(RATE, COMPARED=TWO, SHORT=small, RATE=20, IN_FLIGHT=2)
    lost = cells(ran, "agents")[2]
    assert lost == "0.0%"
    assert cells(ran, "gather")[1] != "0x"
    assert re.search(
        r"^RESULT: agents take .*, are refused \d+x, lose 0.0%", ran.out, re.M
    )


@pytest.mark.long
def test_agents_are_never_refused_under_a_limit(
    run_inprocess: RunScript, load_script: LoadScript
) -> None:
    # So few at once, so slowly then, that a busy machine does not matter.
    small = load_script(RATE).Size(12, 8, 5, 25_000, 10_000, 1)
    ran = run_inprocess(RATE, COMPARED=TWO, SHORT=small, RATE=4, IN_FLIGHT=2)
    assert cells(ran, "agents")[1:3] == ["0x", "0.0%"]
    assert ", are refused 0x, lose 0.0%" in ran.last_line


@pytest.mark.long
def test_faults_lose_nothing_and_nothing_is_paid_again(
    run_inprocess: RunScript, load_script: LoadScript
) -> None:
    def faulty_settings(size: object, seed: int) -> Settings:
        kinds = ("malformed", "reset", "500", "500", "malformed")
        return Settings(
            latency=0.01,
            faults=tuple(Fault(kind, calls=(n,)) for n, kind in enumerate(kinds, 1)),
        )

    small = load_script(FAULTS).Size(20, 1000, 1000, 60.0, (0,))
    ran = run_inprocess(
        FAULTS, COMPARED=TWO, SHORT=small, settings_of=faulty_settings, HEDGE=0.1
    )
    assert cells(ran, "agents")[1:4] == ["0x", "0.0%", "0x"]
    assert cells(ran, "agents, hedged")[1:3] == ["0x", "0.0%"]
    assert cells(ran, "gather")[1:4] == [
        "0x",
        "10.0%",
        "0x",
    ]  # what the SDK cannot read
    assert "lose 0.0%, pay again for 0x answers" in ran.last_line


def test_the_bound_without_faults_is_the_ideal(load_script: LoadScript) -> None:
    module, size, settings = bound_of(load_script)
    assert module.bound(size, settings) == pytest.approx((40 - 10) / 100 + 0.1)


def test_the_bound_waits_for_the_last_call_that_hangs(load_script: LoadScript) -> None:
    module, size, settings = bound_of(load_script, Fault("hang", calls=(40,)))
    ends = (40 - 10) / 100 + 2 + 0.1  # sent as the last one, given up, answered
    assert module.bound(size, settings) == pytest.approx(ends)


def test_bound_waits_for_a_503_as_told(
    load_script: LoadScript,
) -> None:
    module, size, settings = bound_of(load_script, Fault("503", calls=(40, 41)))
    ends = (40 - 10) / 100 + 2 * 1 + 0.1
    assert module.bound(size, settings) == pytest.approx(ends)


def test_bound_counts_an_early_failure_once(
    load_script: LoadScript,
) -> None:
    module, size, settings = bound_of(load_script, Fault("500", calls=(1, 2, 3)))
    assert module.bound(size, settings) == pytest.approx((43 - 10) / 100 + 0.1)


def bound_of(load: LoadScript, *faults: Fault) -> tuple[ModuleType, object, Settings]:
    module = load(FAULTS)
    size = module.Size(40, 100, 10, 2.0, (0,))
    return module, size, replace(module.settings_of(size, 0), faults=faults)


@pytest.mark.long
def test_queued_questions_take_no_memory_with_agents(
    run_inprocess: RunScript, load_script: LoadScript
) -> None:
    module = load_script(MEMORY)
    held = {
        way: [module.peak(module.IN_MEMORY[way], number) for number in (50, 50, 500)][
            1:
        ]
        for way in module.IN_MEMORY
    }
    few, many = held["gather + semaphore"]
    assert many > 5 * few
    few, many = held["agents"]
    assert many < 1.2 * few
    ran = run_inprocess(MEMORY, SHORT=(20, 40))
    assert ran.last_line.startswith("RESULT: 40 questions take ")


def test_memory_benchmark_raises_if_a_question_is_lost(
    load_script: LoadScript,
) -> None:
    async def answers_none(number: int) -> int:
        return 0

    with pytest.raises(AssertionError):
        load_script(MEMORY).peak(answers_none, 1)


@pytest.mark.parametrize("way", baselines.BASELINES)
async def test_each_way_counts_what_it_has_got(
    way: str, model_server: LocalServer
) -> None:
    limits = Limits(concurrency=3, rpm=600, request_burst=20)
    async with client_of(model_server) as client:
        assert await baselines.BASELINES[way](client, ["a", "b", "c", "d"], limits) == 4
    stats = model_server.stats()
    assert (stats.answered, len(stats.answers)) == (4, 4)
    assert way == "gather" or stats.largest_in_flight <= 3


@pytest.mark.long
async def test_by_hand_all_that_may_pass_is_tried_again(
    model_server: LocalServer,
) -> None:
    """It is no straw man: it loses nothing either, and its pace holds."""
    kinds = ("500", "503", "reset", "malformed", "hang", "429")
    faults = [Fault(kind, calls=(n,), retry_after=0) for n, kind in enumerate(kinds, 1)]
    model_server.reset(Settings(latency=0, faults=tuple(faults)))
    limits = Limits(concurrency=3, timeout=1.5, tpm=6e6, token_burst=1e5)
    questions = [f"{n}?" for n in range(12)]
    async with client_of(model_server, timeout=1.5) as client:
        assert await baselines.by_hand(client, questions, limits) == 12
    stats = model_server.stats()
    assert stats.received == 12 + len(kinds)
    assert set(stats.answers.values()) == {1}


async def test_by_hand_what_cannot_pass_is_lost_at_once(
    model_server: LocalServer,
) -> None:
    model_server.reset(Settings(latency=0, models=("another",)))
    async with client_of(model_server) as client:
        assert await baselines.by_hand(client, ["a"], Limits()) == 0
    assert model_server.stats().received == 1


def client_of(server: LocalServer, timeout: float = 60) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=server.base_url, api_key="local", timeout=timeout)


def test_a_child_asks_one_job_after_another(model_server: LocalServer) -> None:
    with baselines.children("agents") as kids:
        first = kids["agents"].ask(["a", "b"], Limits(), model_server, Settings())
        second = kids["agents"].ask(["c"], Limits(), model_server, Settings())
    assert (first.asked, first.lost, dict(first.stats.answers)) == (
        2,
        0,
        {"a": 1, "b": 1},
    )
    assert (second.asked, second.lost, dict(second.stats.answers)) == (1, 0, {"c": 1})
    assert second.cost.cpu > 0


def test_a_child_that_has_ended_is_one_clear_error(model_server: LocalServer) -> None:
    with baselines.children("agents") as kids:
        kids["agents"].process.kill()
        kids["agents"].process.wait()
        with pytest.raises(ReaderError, match=r"^agents: its process has ended$"):
            kids["agents"].ask(["a"], Limits(), model_server, Settings())


def test_children_are_gone_when_something_fails() -> None:
    started = baselines.children("gather")
    child = started.__enter__()["gather"]
    started.__exit__(KeyError, KeyError(), None)
    assert child.process.returncode is not None


def test_answer_delivered_twice_was_paid_again() -> None:
    cost = baselines.Cost(answered=3, seconds=1, cpu=0, memory=0)
    stats = Stats(answers={"a": 3, "b": 1, "c": 1}, refused={"429": 4, "503": 1})
    seen = baselines.Seen(4, cost, stats)
    assert (seen.again, seen.refused, seen.lost) == (2, 4, 1)


@pytest.mark.parametrize(
    ("arguments", "full"), [([], False), (["--short"], False), (["--full"], True)]
)
def test_short_is_the_default(
    arguments: list[str], full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments])
    assert baselines.wants_full("") is full


def test_a_wrong_command_line_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--quick"])
    with pytest.raises(ReaderError, match=r"^unrecognized arguments: --quick$"):
        baselines.wants_full("")


def test_texts_differ_and_are_the_same_every_run(
    load_script: LoadScript,
) -> None:
    module = load_script(RATE)
    texts = module.texts(module.SHORT.texts)
    assert texts == module.texts(module.SHORT.texts)
    assert len(set(texts)) == module.SHORT.texts
    assert max(map(len, texts)) > 40 * min(map(len, texts))
    assert max(map(baselines.tokens_of, texts)) < module.SHORT.token_burst
