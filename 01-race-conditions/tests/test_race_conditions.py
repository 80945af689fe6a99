"""Each pair with the same check, for many orders of the answers of a fake model."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Any

import pytest

from racelab import Ask, LocalServer, Message, Refused, Timeline
from racelab.fakes import CountedAsk, fake_ask
from racelab.pytest.run_scripts import LoadScript, RunScript

ORDERS = range(50)  # seeds of the fake model


def test_the_server_bills_what_the_scripts_say(
    run_inprocess: RunScript, session_server: LocalServer
) -> None:
    assert run_inprocess("broken_double_spend.py").numbers == (6, 2)
    assert session_server.stats().answered == 6
    assert run_inprocess("fixed_double_spend.py").numbers == (2, 2)
    assert session_server.stats().answered == 2


Check = Callable[[ModuleType, int], bool]


def run(module: ModuleType, *columns: str, seed: int) -> Any:
    return asyncio.run(module.run(fake_ask(seed), Timeline(*columns)))


def every_finding_is_kept(module: ModuleType, seed: int) -> bool:
    return len(run(module, *module.AGENTS, seed=seed)) == len(module.AGENTS)


def the_budget_is_kept(module: ModuleType, seed: int) -> bool:
    answers = run(module, *module.AGENTS, seed=seed)
    paid = len(answers) - answers.count(None)
    return bool(paid == module.BUDGET // module.PRICE)


def each_task_is_done_once(module: ModuleType, seed: int) -> bool:
    done = run(module, *module.WORKERS, seed=seed)
    return bool(done == dict.fromkeys(module.TASKS, 1))


def each_answer_fits(module: ModuleType, seed: int) -> bool:
    answers = run(module, *module.CITIES, seed=seed)
    return all(city in answers[city] for city in module.CITIES)


def each_vote_is_under_its_name(module: ModuleType, seed: int) -> bool:
    filed = run(module, *module.PANEL, seed=seed)
    return all(agent in filed[agent].lower() for agent in module.PANEL)


def each_run_gets_an_answer(module: ModuleType, seed: int) -> bool:
    timeline = Timeline(*module.CITIES)
    answers, history = asyncio.run(module.run(strict_chat(seed), timeline))
    return None not in answers and first_unanswered(history) is None


def strict_chat(seed: int) -> Callable[..., Any]:
    """A fake chat that refuses, as the API does, tool calls that are not answered."""
    ask = fake_ask(seed)
    calls = 0

    async def chat(messages: list[Message], **options: Any) -> Message:
        nonlocal calls
        messages = list(messages)  # what is sent now: the list may grow meanwhile
        if first_unanswered(messages):
            raise Refused("tool calls must be followed by tool messages", 400)
        answer = await ask(str(messages[-1]["content"]))
        if options.get("tool_choice") != "required":
            return {"role": "assistant", "content": answer}
        calls += 1
        call = {"name": "weather", "arguments": "{}"}
        tool_call = {"id": f"call_{calls}", "type": "function", "function": call}
        return {"role": "assistant", "tool_calls": [tool_call]}

    return chat


def first_unanswered(messages: list[Message]) -> str | None:
    """The id of the first tool call that the next messages do not answer."""
    for place, message in enumerate(messages):
        calls = message.get("tool_calls", [])
        results = messages[place + 1 : place + 1 + len(calls)]
        answered = {result.get("tool_call_id") for result in results}
        for call in calls:
            if call["id"] not in answered:
                return str(call["id"])
    return None


CHECKS: dict[str, Check] = {
    "agents": every_finding_is_kept,
    "double_spend": the_budget_is_kept,
    "duplicate_work": each_task_is_done_once,
    "shared_agent": each_answer_fits,
    "shared_history": each_run_gets_an_answer,
    "wrong_owner": each_vote_is_under_its_name,
}


@pytest.mark.parametrize("pair", CHECKS)
def test_broken_fails_the_check_in_every_order_tried(
    pair: str, load_script: LoadScript
) -> None:
    module = load_script(f"broken_{pair}.py")
    assert not any(CHECKS[pair](module, seed) for seed in ORDERS)


@pytest.mark.parametrize("pair", CHECKS)
def test_fixed_holds_in_every_order_tried(pair: str, load_script: LoadScript) -> None:
    module = load_script(f"fixed_{pair}.py")
    assert all(CHECKS[pair](module, seed) for seed in ORDERS)


def test_the_timeline_shows_that_all_read_before_anyone_writes(
    load_script: LoadScript,
) -> None:
    module = load_script("broken_agents.py")
    timeline = Timeline(*module.AGENTS)
    asyncio.run(module.run(fake_ask(0), timeline))
    assert {timeline.of(agent)[0] for agent in module.AGENTS} == {"read 0"}
    assert {timeline.of(agent)[1] for agent in module.AGENTS} == {"wrote 1"}


async def test_a_failed_call_gives_its_reservation_back(
    load_script: LoadScript,
) -> None:
    module = load_script("fixed_double_spend.py")
    budget = module.Budget(left=module.BUDGET)

    async def fails(question: str) -> str:
        raise ConnectionError(question)

    with pytest.raises(ConnectionError):
        await module.spend("scout", budget, fails, Timeline("scout"))
    assert budget.left == module.BUDGET


async def test_a_cancelled_call_gives_its_reservation_back(
    load_script: LoadScript,
) -> None:
    module = load_script("fixed_double_spend.py")
    budget = module.Budget(left=module.BUDGET)
    asked = asyncio.Event()

    async def hangs(question: str) -> str:
        asked.set()
        await asyncio.Event().wait()
        return question

    call = asyncio.create_task(module.spend("scout", budget, hangs, Timeline("scout")))
    await asked.wait()
    assert budget.left == module.BUDGET - module.PRICE
    call.cancel()
    await asyncio.wait([call])
    assert budget.left == module.BUDGET


@pytest.mark.parametrize(
    ("way", "most"), [("one_at_a_time", 1), ("together", 8), ("in_a_chain", 1)]
)
async def test_benchmark_keeps_agents_in_flight(
    way: str, most: int, load_script: LoadScript
) -> None:
    module = load_script("benchmark_sequential_vs_parallel.py")
    ask = CountedAsk(fake_ask(0))
    await getattr(module, way)(8, ask)
    assert (ask.calls, ask.most) == (8, most)


def test_benchmark_measures_both_ways_and_the_chain(
    run_inprocess: RunScript, session_server: LocalServer
) -> None:
    ran = run_inprocess(
        "benchmark_sequential_vs_parallel.py", TEAMS=(1, 3), CHAIN=2, REPEATS=1
    )
    assert (ran.status, ran.word, ran.numbers[0]) == (0, "RESULT", 3), ran
    rows = [line.split("  ")[0] for line in ran.out.splitlines()]
    assert rows[:-1] == ["agents", "1", "3", "2 in a chain"]
    assert session_server.stats().answered == 3 + 2 * (1 + 3 + 2)  # 3 to warm up
    assert session_server.stats().largest_in_flight == 3


@pytest.mark.parametrize(("kind", "right"), [("broken", False), ("fixed", True)])
def test_a_signature_may_have_a_capital(
    kind: str, right: bool, load_script: LoadScript, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real models sign "Critic", not "critic"."""
    module = load_script(f"{kind}_wrong_owner.py")

    @asynccontextmanager
    async def open_model() -> AsyncIterator[Ask]:
        async def ask(question: str) -> str:
            await asyncio.sleep(0)
            return "Yes. -- " + question.split()[3].title()  # You are the critic. ...

        yield ask

    monkeypatch.setattr(module, "open_model", open_model)
    assert (asyncio.run(module.main()) == 0) == right
