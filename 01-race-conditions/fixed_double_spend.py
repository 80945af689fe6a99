"""
Six agents share a budget for two calls, and two calls are paid for.

Run:   python fixed_double_spend.py
Next:  python broken_shared_history.py
Real:  https://github.com/BerriAI/litellm/issues/34732
"""

import asyncio
from dataclasses import dataclass

from racelab import Ask, Timeline, local_server, open_model, start, verdict

AGENTS = ("scout", "critic", "writer", "lawyer", "tester", "coder")
PRICE = 10  # cents for one call
BUDGET = 20  # cents for all of them


@dataclass
class Budget:
    left: int  # cents


async def spend(agent: str, budget: Budget, ask: Ask, timeline: Timeline) -> str | None:
    """Ask if the budget allows it. A call that fails costs nothing."""
    if budget.left < PRICE:
        timeline.mark(agent, "refused")
        return None
    timeline.mark(agent, f"sees {budget.left}c")
    # Reserve before the await: nobody else can run between the check and this line.
    budget.left -= PRICE
    timeline.mark(agent, f"leaves {budget.left}c")
    try:
        return await ask(f"As the {agent}, review our launch plan.")
    except BaseException:  # cancelled calls too
        budget.left += PRICE
        raise


async def run(ask: Ask, timeline: Timeline) -> list[str | None]:
    """Let all agents spend at the same time; None for each that was refused."""
    budget = Budget(left=BUDGET)
    team = (spend(agent, budget, ask, timeline) for agent in AGENTS)
    return await asyncio.gather(*team)


async def main() -> int:
    timeline = Timeline(*AGENTS)
    with local_server() as server:  # it counts what is really billed
        async with open_model(server) as ask:
            await run(ask, timeline)
        paid, allowed = server.stats().answered, BUDGET // PRICE
    print(timeline)
    return verdict(
        paid == allowed, f"paid for {paid} calls with a budget for {allowed}"
    )


if __name__ == "__main__":
    start(main)
