"""What the shared tests of the pairs and `04-testing/every_order.py` do not see."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from racelab import Ask, LocalServer, Timeline
from racelab.fakes import CountedAsk, fake_ask
from racelab.pytest.run_scripts import LoadScript, RunScript


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
