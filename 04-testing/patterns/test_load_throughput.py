"""Load: more agents get more done, until all slots are taken; from there they queue.

The agents ask through ten slots, so there are never more than ten requests in flight.
With `--long` up to 1,000 agents ask at the same time. The table is printed at the end.
Seconds are printed and never asserted: they say more about the machine than the code.
What is asserted is counts, and what is more than what.
"""

import asyncio
from dataclasses import dataclass

import pytest

from racelab import Ask, LocalServer, Settings, Stats, open_model
from racelab.fakes import CountedAsk
from racelab.pytest.load import Load, LoadReport, peak_memory, put_load

pytestmark = pytest.mark.load

SLOTS = 10
LATENCY = 0.02  # seconds until an answer, half as much more or less
SHORT = {1: 10, 10: 5, 100: 1}  # agents: calls of each
FULL = {1: 50, 10: 20, 100: 5, 1000: 2}


@dataclass(frozen=True)
class Measured:
    load: Load
    stats: Stats  # of the server
    asking: int  # agents at the same time, at most
    memory: int  # bytes, at most


def through_slots(ask: Ask) -> Ask:
    """The code under test."""
    slots = asyncio.Semaphore(SLOTS)

    async def patient_ask(question: str) -> str:
        async with slots:
            return await ask(question)

    return patient_ask


async def measure(server: LocalServer, sizes: dict[int, int]) -> dict[int, Measured]:
    measured = {}
    async with open_model(server) as model:
        await put_load(through_slots(model), SLOTS, calls=1)  # imports, connections
        for agents, calls in sizes.items():
            server.reset(Settings(latency=LATENCY))
            ask = CountedAsk(through_slots(model))
            load, stats = await put_load(ask, agents, calls), server.stats()
            memory = await peak_memory(ask, agents)
            measured[agents] = Measured(load, stats, ask.most, memory)
    return measured


@pytest.fixture(scope="module")
def measured(
    session_server: LocalServer, load_report: LoadReport, pytestconfig: pytest.Config
) -> dict[int, Measured]:
    sizes = FULL if pytestconfig.getoption("--long") else SHORT
    measured = asyncio.run(measure(session_server, sizes))
    for one in measured.values():
        load_report.add(f"{SLOTS} slots", one.load, one.stats, one.memory)
    return measured


def test_no_call_is_lost(measured: dict[int, Measured]) -> None:
    for one in measured.values():
        assert one.load.answered == one.load.calls == one.stats.answered
        assert one.stats.received == one.load.calls  # and none was sent twice


def test_there_are_never_more_requests_in_flight_than_slots(
    measured: dict[int, Measured],
) -> None:
    assert measured[1].stats.largest_in_flight == 1
    for one in measured.values():
        assert one.stats.largest_in_flight <= SLOTS
        assert one.stats.connections_opened <= SLOTS


def test_all_agents_wait_for_slots_at_once(
    measured: dict[int, Measured],
) -> None:
    for agents, one in measured.items():
        assert one.asking == agents
    assert measured[10].stats.largest_in_flight > 1


def test_waiting_agent_costs_less_memory_than_an_asking_one(
    measured: dict[int, Measured],
) -> None:
    asking = (measured[10].memory - measured[1].memory) / 9
    most = max(measured)
    waiting = (measured[most].memory - measured[10].memory) / (most - 10)
    assert waiting < asking
