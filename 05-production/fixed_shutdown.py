"""
A server is stopped while it saves a batch that it still has, and saves it again.

Run:   python fixed_shutdown.py
Next:  python broken_resume.py
Real:  https://github.com/BerriAI/litellm/issues/34820
"""

import asyncio
from dataclasses import dataclass, field

from racelab import Ask, Timeline, open_model, start, verdict

AGENTS = ("scout", "critic", "writer", "lawyer", "tester", "seller")
BATCH = 3  # records in one write


class Database:
    """Stands for one that is reached over a network."""

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}  # what each agent's answer has cost
        self.is_writing = asyncio.Event()

    async def save(self, batch: list[tuple[str, int]]) -> None:
        self.is_writing.set()
        await asyncio.sleep(0.1)  # a cancel here, and nothing is written
        self.rows.update(batch)  # by agent: what is saved twice is there once


@dataclass
class Log:
    database: Database
    timeline: Timeline
    records: list[tuple[str, int]] = field(default_factory=list)  # not yet saved

    async def flush(self) -> None:
        while batch := self.records[:BATCH]:
            self.timeline.mark("log", f"saves {len(batch)}")
            await self.database.save(batch)
            # Only now: cancelled during the write, they are saved by the next flush.
            del self.records[: len(batch)]
            self.timeline.mark("log", f"saved {len(batch)}")

    async def keep_flushing(self) -> None:
        while True:
            await asyncio.sleep(0.01)
            if len(self.records) >= BATCH:
                await self.flush()


async def work(agent: str, log: Log, ask: Ask) -> None:
    answer = await ask(f"As the {agent}, name a risk.")
    log.records.append((agent, len(answer)))
    log.timeline.mark(agent, "logged")


async def run(ask: Ask, timeline: Timeline) -> dict[str, int]:
    """Serve all agents, be stopped in the middle of a write, and give what is saved."""
    log = Log(Database(), timeline)
    flusher = asyncio.create_task(log.keep_flushing())
    async with asyncio.TaskGroup() as calls:
        for agent in AGENTS:
            calls.create_task(work(agent, log, ask))
        await log.database.is_writing.wait()
        timeline.mark("server", "stops")  # as on each deploy
        flusher.cancel()
        await asyncio.wait([flusher])
    await log.flush()  # the last calls are answered: save what is left
    return log.database.rows


async def main() -> int:
    timeline = Timeline(*AGENTS, "log", "server")
    async with open_model() as ask:
        saved = len(await run(ask, timeline))
    print(timeline)
    return verdict(saved == len(AGENTS), f"saved {saved} of {len(AGENTS)} records")


if __name__ == "__main__":
    start(main)
