"""
Three agents wait for their helpers without a slot in hand, and all six finish.

Run:   python fixed_nested_slots.py
Next:  python broken_backoff_in_slot.py
Real:  https://github.com/gptme/gptme/pull/2892
"""

import asyncio
from dataclasses import dataclass

from racelab import Ask, Timeline, Watchdog, local_server, open_model, start, verdict

HELPERS = {"scout": "reader", "critic": "tester", "lawyer": "clerk"}
AGENTS = (*HELPERS, *HELPERS.values())
SLOTS = 3  # calls of the model at the same time, and no more


@dataclass
class Team:
    slots: asyncio.Semaphore
    ask: Ask
    timeline: Timeline
    watchdog: Watchdog

    def start(self, agent: str) -> asyncio.Task[str]:
        task = asyncio.create_task(work(agent, self), name=agent)
        self.watchdog.add(agent, task)
        return task


async def work(agent: str, team: Team) -> str:
    """One agent's work. Some need what their helper has found, and wait for it."""
    notes = ""
    # No slot is taken here: who waits for another agent does not call the model.
    if agent in HELPERS:
        notes = await team.start(HELPERS[agent])
    async with team.slots:
        team.timeline.mark(agent, "has a slot")
        answer = await team.ask(f"As the {agent}, name a risk. {notes}")
    team.timeline.mark(agent, "done")
    return answer


async def run(ask: Ask, timeline: Timeline, watchdog: Watchdog) -> list[str]:
    """Let the three work at the same time, each with a helper; give their answers."""
    team = Team(asyncio.Semaphore(SLOTS), ask, timeline, watchdog)
    return await asyncio.gather(*map(team.start, HELPERS))


async def main() -> int:
    timeline = Timeline(*AGENTS)
    watchdog = Watchdog(lambda: str(timeline))
    # The local server answers long before the watchdog's patience ends.
    with local_server() as server:
        async with open_model(server) as ask:
            watchdog.add("boss", asyncio.create_task(run(ask, timeline, watchdog)))
            stuck = await asyncio.to_thread(watchdog.watch)
    print(timeline, *stuck, sep="\n")
    finished = sum("done" in timeline.of(agent) for agent in AGENTS)
    return verdict(not stuck, f"finished {finished} of {len(AGENTS)} agents")


if __name__ == "__main__":
    start(main)
