"""
One of four agents fails, and the others go on: six calls are paid for and kept.

Run:   python fixed_orphans_keep_partial.py
Next:  python broken_fire_and_forget.py
Real:  https://github.com/openai/openai-agents-python/pull/4142
"""

import asyncio
from functools import partial

from openai import APIError, AsyncOpenAI

from racelab import Ask, Fault, Timeline, local_server, start, verdict

AGENTS = ("scout", "writer", "lawyer", "seller")
TROUBLE = Fault("500", question="scout")  # the scout's call fails at once


async def ask_model(client: AsyncOpenAI, question: str) -> str:
    reply = await client.chat.completions.create(
        model="gpt-5.4-mini", messages=[{"role": "user", "content": question}]
    )
    return reply.choices[0].message.content or ""


async def research(agent: str, ask: Ask, timeline: Timeline) -> list[str]:
    """Two calls, one after the other; give both answers."""
    timeline.mark(agent, "asks")
    notes = await ask(f"As the {agent}, find a risk of our launch.")
    timeline.mark(agent, "asks again")
    report = await ask(f"As the {agent}, write a report from: {notes}")
    timeline.mark(agent, "is done")
    return [notes, report]


async def run(ask: Ask, timeline: Timeline) -> list[list[str]]:
    """Let all agents work at the same time; give the answers that are kept."""
    async with asyncio.TaskGroup() as group:
        team = [group.create_task(attempt(agent, ask, timeline)) for agent in AGENTS]
    # Nobody has been stopped: a failure that we expect is an outcome like any other.
    outcomes = [task.result() for task in team]
    return [outcome for outcome in outcomes if not isinstance(outcome, APIError)]


async def attempt(agent: str, ask: Ask, timeline: Timeline) -> list[str] | APIError:
    try:
        return await research(agent, ask, timeline)
    except APIError as failure:
        timeline.mark(agent, "fails")
        return failure


async def rest_of_the_program() -> None:
    """It lives on, as a web server would, until nothing else is running."""
    if others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others)


async def main() -> int:
    timeline = Timeline("boss", *AGENTS)
    with local_server(latency=0.4, faults=[TROUBLE]) as server:
        url, key = server.base_url, server.api_key
        async with AsyncOpenAI(base_url=url, api_key=key, max_retries=0) as client:
            await client.models.list()  # warms up the SDK and its connection
            kept = await run(partial(ask_model, client), timeline)
            await rest_of_the_program()
        paid = server.stats().answered  # all of it later than the failure
    print(timeline)
    answers = sum(map(len, kept))
    return verdict(answers == paid, f"kept {answers} of {paid} answers that came later")


if __name__ == "__main__":
    start(main)
