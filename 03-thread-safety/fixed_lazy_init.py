"""
Five agents need one session at the same time, and one of them opens it.

Run:   python fixed_lazy_init.py
Next:  python broken_tool_timeout.py
Real:  https://github.com/openai/openai-agents-python/pull/3821
"""

import asyncio
from dataclasses import dataclass, field

from racelab import Ask, Timeline, open_model, start, verdict

AGENTS = ("tester", "scout", "writer", "editor", "seller")


@dataclass
class Session:
    """Its history begins with a briefing, which nobody pays for before it is needed."""

    history: list[str] | None = None
    opened: int = 0  # how often
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def open(self, agent: str, ask: Ask, timeline: Timeline) -> list[str]:
        async with self.lock:  # who is not the first waits here, and then looks
            if self.history is None:
                timeline.mark(agent, "opens it")
                briefing = await ask(f"Brief the {agent} on our launch.")
                self.history = [briefing]
                self.opened += 1
        return self.history


async def research(agent: str, session: Session, ask: Ask, timeline: Timeline) -> None:
    history = await session.open(agent, ask, timeline)
    finding = await ask(f"As the {agent}, name a risk.")
    history.append(finding)
    timeline.mark(agent, f"adds no. {len(history) - 1}")


async def run(ask: Ask, timeline: Timeline) -> Session:
    """Let all agents research at the same time, and give the session."""
    session = Session()
    team = (research(agent, session, ask, timeline) for agent in AGENTS)
    await asyncio.gather(*team)
    return session


async def main() -> int:
    timeline = Timeline(*AGENTS)
    async with open_model() as ask:
        session = await run(ask, timeline)
    print(timeline)
    kept, wanted, opened = len(session.history or [""]) - 1, len(AGENTS), session.opened
    return verdict(
        kept == wanted and opened == 1,
        f"kept {kept} of {wanted} findings, opened the session {opened}x",
    )


if __name__ == "__main__":
    start(main)
