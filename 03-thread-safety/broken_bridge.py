"""
Async agents call a tool in a thread, it runs an async agent, and no answer comes.

Run:   python broken_bridge.py
Next:  python fixed_bridge.py
Real:  https://github.com/pydantic/pydantic-ai/issues/3899
"""

import asyncio

from racelab import Ask, Timeline, local_server, open_model, start, verdict

AGENTS = ("critic", "lawyer", "seller")
Outcome = tuple[str, bool, str]  # agent, has advice, the advice or what went wrong


async def advise(agent: str, ask: Ask, timeline: Timeline) -> str:
    """The expert: an async agent, which the tool needs."""
    timeline.mark("expert", f"asks for {agent}")
    return await ask(f"What would an expert tell the {agent}?")


def consult(
    agent: str, ask: Ask, loop: asyncio.AbstractEventLoop, timeline: Timeline
) -> str:
    """The tool: a plain function, called in a thread. It cannot await."""
    # A second loop, in this thread. But the client's connections belong to the first.
    return asyncio.run(advise(agent, ask, timeline))


async def research(agent: str, ask: Ask, timeline: Timeline) -> Outcome:
    await ask(f"You are the {agent}. What could go wrong?")
    timeline.mark(agent, "consults")
    loop = asyncio.get_running_loop()
    try:
        advice = await asyncio.to_thread(consult, agent, ask, loop, timeline)
    except RuntimeError as error:
        timeline.mark(agent, "has nothing")
        return agent, False, str(error).rpartition("> ")[-1]
    timeline.mark(agent, "has advice")
    return agent, True, advice


async def run(ask: Ask, timeline: Timeline) -> list[Outcome]:
    """Let all agents research at the same time; give what each has in the end."""
    team = (research(agent, ask, timeline) for agent in AGENTS)
    return await asyncio.gather(*team)


async def main() -> int:
    timeline = Timeline(*AGENTS, "expert")
    with local_server(latency=0.3) as server:  # no answer before it is awaited
        async with open_model(server) as ask:
            outcomes = await run(ask, timeline)
    print(timeline)
    print(*(f"{agent}: {says}" for agent, _, says in outcomes), sep="\n")
    got = sum(has_advice for _, has_advice, _ in outcomes)
    return verdict(got == len(AGENTS), f"got {got} of {len(AGENTS)} answers")


if __name__ == "__main__":
    start(main)
