"""100,000 questions in a row, some minutes: memory stays flat, and nothing is left."""

import asyncio
import gc
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from openai import AsyncOpenAI, DefaultAioHttpClient

from agents import Journal, Limits, Team, openai_ask
from racelab import LocalServer, Settings

pytestmark = pytest.mark.load

QUESTIONS = 100_000
WARM_UP = 5_000
LIMITS = Limits(concurrency=50)


@dataclass(frozen=True)
class Footprint:
    """What this process holds on to."""

    blocks: int  # of memory, by Python's own count
    peak: int  # kB in all, at most, so far; 0 where the system does not say
    files: int  # and sockets; 0 where the system does not say


def footprint() -> Footprint:
    gc.collect()
    peak = 0
    if sys.platform == "linux":
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    files = len(os.listdir("/dev/fd")) if os.path.exists("/dev/fd") else 0
    return Footprint(sys.getallocatedblocks(), peak, files)


def sizes(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in folder.iterdir()}


async def ask_all(server: LocalServer, journal: Journal, first: int, last: int) -> int:
    """How many are answered."""
    http = DefaultAioHttpClient(verify=False, trust_env=False)
    client = AsyncOpenAI(base_url=server.base_url, api_key="any", http_client=http)
    answered = 0
    async with (
        client,
        Team(openai_ask(client, "any", LIMITS), LIMITS, journal=journal) as team,
    ):
        async for outcome in team.run(f"Question {n}?" for n in range(first, last)):
            answered += outcome.answer is not None
    return answered


async def test_memory_stays_flat_and_nothing_is_left(
    model_server: LocalServer, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    if not pytestconfig.getoption("--long", default=False):
        pytest.skip("a soak test, for --long")
    model_server.reset(Settings(latency=0.002))
    tasks = asyncio.all_tasks()
    with Journal(tmp_path / "run.db") as journal:
        assert await ask_all(model_server, journal, 0, WARM_UP) == WARM_UP
        before = footprint()
        rest = await ask_all(model_server, journal, WARM_UP, QUESTIONS)
        after = footprint()
        log = sizes(tmp_path)["run.db-wal"]
    assert rest == QUESTIONS - WARM_UP
    assert asyncio.all_tasks() == tasks
    assert after.files == before.files
    assert after.blocks - before.blocks < QUESTIONS / 100  # not one for each question
    assert after.peak < 1.2 * before.peak or not before.peak
    assert log < 10_000_000
    assert set(sizes(tmp_path)) == {"run.db"}
    stats = model_server.stats()
    assert stats.connections_open == 0
    assert stats.connections_opened <= 2 * LIMITS.concurrency
    assert stats.received == len(stats.answers) == QUESTIONS
