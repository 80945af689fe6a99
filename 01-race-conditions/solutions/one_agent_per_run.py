"""
Exercise 3: an agent object that keeps its question in `self` serves one run only.

Run:   python solutions/one_agent_per_run.py
Next:  benchmark_sequential_vs_parallel.py
Real:  https://github.com/agno-agi/agno/issues/3120
"""

import asyncio

from racelab import Ask, Timeline, open_model, start, verdict

CITIES = ("Lyon", "Vienna", "Seoul")


class Guide:
    """An agent that makes sure of the question before it answers."""

    def __init__(self, ask: Ask, timeline: Timeline) -> None:
        self.ask = ask
        self.timeline = timeline

    async def describe(self, city: str) -> str:
        self.city = city
        self.timeline.mark(city, f"checks {self.city}")
        check = await self.ask(f"Is {self.city} a city? Answer yes or no.")
        # While this call waited, the others ran, each with a `self` of its own.
        self.timeline.mark(city, f"asks about {self.city}")
        hint = "" if "yes" in check.lower() else " (it may be a small place)"
        return await self.ask(f"Describe {self.city}{hint}. Begin with its name.")


async def run(ask: Ask, timeline: Timeline) -> dict[str, str]:
    """Ask a guide about each city at the same time; give the answer for each."""
    guides = {city: Guide(ask, timeline) for city in CITIES}
    answers = await asyncio.gather(*(guides[city].describe(city) for city in CITIES))
    return dict(zip(CITIES, answers, strict=True))


async def main() -> int:
    timeline = Timeline(*CITIES)
    async with open_model() as ask:
        answers = await run(ask, timeline)
    print(timeline)
    fits, wanted = sum(city in answers[city] for city in CITIES), len(CITIES)
    return verdict(fits == wanted, f"{fits} of {wanted} answers fit their question")


if __name__ == "__main__":
    start(main)
