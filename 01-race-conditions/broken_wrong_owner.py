"""
Four agents vote, and the votes are filed under the wrong names.

Run:   python broken_wrong_owner.py
Next:  python fixed_wrong_owner.py
Real:  https://github.com/kyegomez/swarms/issues/1788
"""

import asyncio

from racelab import Ask, Timeline, open_model, start, verdict

PANEL = ("chair", "critic", "tester", "buyer")
Vote = str  # what the agent says


async def vote(
    agent: str, hear: list[asyncio.Task[Vote]], ask: Ask, timeline: Timeline
) -> Vote:
    """Vote when the tasks in `hear` are done: the chair hears all others first."""
    if hear:
        await asyncio.wait(hear)
    timeline.mark(agent, "asks")
    answer = await ask(f"You are the {agent}. Do we launch? Sign with your role.")
    timeline.mark(agent, "votes")
    return answer


async def run(ask: Ask, timeline: Timeline) -> dict[str, str]:
    """Let all vote at the same time; give the vote that is filed under each name."""
    chair, *others = PANEL
    members = [asyncio.create_task(vote(a, [], ask, timeline)) for a in others]
    leader = asyncio.create_task(vote(chair, members, ask, timeline))
    votes = asyncio.as_completed([leader, *members])
    filed = {}
    # as_completed gives the first vote first, not the first agent's vote.
    for agent, finished in zip(PANEL, votes, strict=True):
        filed[agent] = await finished
    return filed


async def main() -> int:
    timeline = Timeline(*PANEL)
    async with open_model() as ask:
        filed = await run(ask, timeline)
    print(timeline)
    for agent in PANEL:
        print(f"filed under {agent}: {filed[agent][:42]}...")
    right = sum(agent in filed[agent].lower() for agent in PANEL)
    wanted = len(PANEL)
    return verdict(right == wanted, f"{right} of {wanted} votes under the right name")


if __name__ == "__main__":
    start(main)
