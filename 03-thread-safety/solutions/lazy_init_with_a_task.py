"""
Exercise 4: without a lock, five agents wait for the same task.

Run:   python solutions/lazy_init_with_a_task.py
Next:  exercise 5
"""

import asyncio
from dataclasses import dataclass

from racelab import Ask, Timeline, open_model, start, verdict

AGENTS = ("tester", "scout", "writer", "editor", "seller")


@dataclass
class Session:
    """Its history begins with a briefing, which nobody pays for before it is needed."""

    opening: asyncio.Task[list[str]] | None = None
    opened: int = 0  # how often

    async def open(self, agent: str, ask: Ask, timeline: Timeline) -> list[str]:
        # No await between the check and the write: nobody else can see None.
        if self.opening is None:
            timeline.mark(agent, "opens it")
            self.opening = asyncio.create_task(self.brief(agent, ask))
        # An agent that is cancelled here takes only itself away.
        return await asyncio.shield(self.opening)

    async def brief(self, agent: str, ask: Ask) -> list[str]:
        try:
            briefing = await ask(f"Brief the {agent} on our launch.")
        except BaseException:
            self.opening = None  # all who wait see this failure, the next one tries
            raise
        self.opened += 1
        return [briefing]


async def research(agent: str, session: Session, ask: Ask, timeline: Timeline) -> None:
    history = await session.open(agent, ask, timeline)
    finding = await ask(f"As the {agent}, name a risk.")
    history.append(finding)
    timeline.mark(agent, f"adds no. {len(history) - 1}")


async def run(ask: Ask, timeline: Timeline) -> tuple[list[str], int]:
    """Let all agents research at the same time; give the history, and the openings."""
    session = Session()
    team = (research(agent, session, ask, timeline) for agent in AGENTS)
    await asyncio.gather(*team)
    return await session.open(AGENTS[0], ask, timeline), session.opened


async def main() -> int:
    timeline = Timeline(*AGENTS)
    async with open_model() as ask:
        history, opened = await run(ask, timeline)
    print(timeline)
    kept, wanted = len(history) - 1, len(AGENTS)
    return verdict(
        kept == wanted and opened == 1,
        f"kept {kept} of {wanted} findings, opened the session {opened}x",
    )


if __name__ == "__main__":
    start(main)
