"""
Twenty agents miss the same cache entry at the same time, and share one call.

Run:   python fixed_stampede.py
Next:  python research.py --help
Real:  https://github.com/caura-ai/caura/pull/213
"""

import asyncio

from racelab import Ask, local_server, open_model, start, table, verdict

AGENTS = 20
QUESTION = "Sum up the handbook in one line."


class Cache:
    """Answers that are paid for once."""

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.answers: dict[str, str] = {}
        self.flights: dict[str, asyncio.Task[None]] = {}  # calls that are under way

    async def get(self, question: str) -> str:
        if question not in self.answers:
            if question not in self.flights:
                self.flights[question] = asyncio.create_task(self.fly(question))
            # The call is nobody's own: who is cancelled here leaves it to the others.
            await asyncio.shield(self.flights[question])
        return self.answers[question]

    async def fly(self, question: str) -> None:
        try:
            self.answers[question] = await self.ask(question)
        finally:
            del self.flights[question]  # has it failed, the next one asks anew


async def run(cache: Cache) -> list[str]:
    """Let all agents need the same answer at the same time."""
    return await asyncio.gather(*(cache.get(QUESTION) for _ in range(AGENTS)))


async def main() -> int:
    with local_server() as server:  # it counts what is really billed
        async with open_model(server) as ask:
            cache = Cache(ask)
            answers, bills = await run(cache), server.stats().answered
            later, again = await run(cache), server.stats().answered - bills
    print(
        table(
            ("", "answers", "bills"),
            (f"{AGENTS} agents at the same time", len(answers), bills),
            (f"{AGENTS} agents later", len(later), again),
        )
    )
    return verdict(bills + again == 1, f"paid {bills + again}x for 1 answer")


if __name__ == "__main__":
    start(main)
