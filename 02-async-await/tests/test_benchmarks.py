"""The benchmarks count what they say they count.

Orders and counts are asserted, never durations: the benchmarks run here with constants
so small that their numbers mean nothing.
"""

from itertools import repeat
from types import SimpleNamespace

import pytest

from racelab import LocalServer, Settings
from racelab.pytest.run_scripts import LoadScript, RunScript

SYNC, TRANSPORTS = "benchmark_sync_vs_async.py", "benchmark_transports.py"


def test_every_way_makes_the_same_calls(
    run_inprocess: RunScript, session_server: LocalServer
) -> None:
    ran = run_inprocess(SYNC, IN_FLIGHT=2, REPEATS={1: 2, 6: 1})
    assert (ran.status, ran.word, ran.numbers[:2]) == (0, "RESULT", (6, 2)), ran
    rows = [line.split()[0] for line in ran.out.splitlines()]
    assert rows == ["calls", "1", "6", "CPU", "RESULT:"]
    warm_up, measured = 2, 1 + 1 + 6
    assert session_server.stats().answered == 4 * (warm_up + measured)


@pytest.mark.parametrize(
    ("way", "most"),
    [("one at a time", 1), ("threads", 3), ("asyncio", 3), ("unbounded", 12)],
)
async def test_calls_in_flight_of_each_way(
    way: str, most: int, load_script: LoadScript, model_server: LocalServer
) -> None:
    module = load_script(SYNC)
    module.IN_FLIGHT = 3
    model_server.reset(Settings(latency=0.03))
    async with module.open_ways(model_server) as ways:
        await ways[way](12)
    stats = model_server.stats()
    assert stats.answered == 12
    assert stats.largest_in_flight <= most
    assert (stats.largest_in_flight > 1) == (most > 1)


def test_the_ideal_is_calls_by_in_flight_times_latency(load_script: LoadScript) -> None:
    module = load_script(SYNC)
    module.IN_FLIGHT = 2
    latency = module.LATENCY
    assert module.speed("one at a time", 6, 6 * latency).endswith(" 100%")
    assert module.speed("asyncio", 6, 6 * latency).endswith(" 50%")
    assert module.speed("threads", 6, 3 * latency).endswith(" 100%")
    assert module.speed("unbounded", 6, latency).endswith(" 100%")
    assert module.speed("asyncio", 1, latency).endswith(" 100%")  # not half a latency


async def test_all_clients_get_the_same_answer(
    load_script: LoadScript, model_server: LocalServer
) -> None:
    async with load_script(TRANSPORTS).open_clients(model_server) as clients:
        answers = {await ask() for ask in clients.values()}
    assert len(clients) == 3
    assert len(answers) == 1
    assert answers != {""}


def test_a_wave_is_in_flight_together(
    run_inprocess: RunScript, session_server: LocalServer
) -> None:
    ran = run_inprocess(TRANSPORTS, speed=1.0, WAVES={1: 2, 3: 1}, DECISIVE=3)
    assert (ran.status, ran.word, ran.numbers[0]) == (0, "RESULT", 3), ran
    rows = [line.split()[0] for line in ran.out.splitlines()]
    assert rows == ["in", *"111", *"333", "RESULT:"]
    stats = session_server.stats()
    assert stats.answered == 3 * (1 + 2 * 1 + 1 * 3)
    assert 1 < stats.largest_in_flight <= 3


async def test_cost_of_a_call_is_its_share(
    load_script: LoadScript,
) -> None:
    module, ticks = load_script(TRANSPORTS), {"perf_counter": 6, "process_time": 3}
    clocks = {name: iter((0, end)).__next__ for name, end in ticks.items()}
    module.time = SimpleNamespace(**clocks)
    calls = repeat(None, 3)

    async def ask() -> None:
        next(calls)

    assert await module.measure(ask, 3) == (2, 1)
    with pytest.raises(StopIteration):
        next(calls)
