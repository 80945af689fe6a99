"""
Exercise 2: ask three agents, keep the first answer, let the server finish no other.

Run:   python solutions/first_answer.py
Next:  exercise 3
"""

import asyncio
from functools import partial

from openai import AsyncOpenAI

from racelab import Ask, Fault, Timeline, local_server, start, verdict

AGENTS = ("scout", "writer", "lawyer")
# The scout is the fastest by far.
SLOW = [Fault("slow", question="writer"), Fault("slow", question="lawyer")]


async def ask_model(client: AsyncOpenAI, question: str) -> str:
    reply = await client.chat.completions.create(
        model="gpt-5.4-mini", messages=[{"role": "user", "content": question}]
    )
    return reply.choices[0].message.content or ""


async def research(agent: str, ask: Ask, timeline: Timeline) -> str:
    timeline.mark(agent, "asks")
    try:
        answer = await ask(f"As the {agent}, find a risk of our launch.")
    except asyncio.CancelledError:
        timeline.mark(agent, "is stopped")
        raise  # else the wait below would be for nothing
    timeline.mark(agent, "answers")
    return answer


async def run(ask: Ask, timeline: Timeline) -> list[str]:
    """Let all agents race; give the answers that are kept."""
    team = [asyncio.create_task(research(agent, ask, timeline)) for agent in AGENTS]
    try:
        first, _ = await asyncio.wait(team, return_when=asyncio.FIRST_COMPLETED)
    finally:
        # `wait` stops nobody, so we do, even if we are cancelled while we wait.
        for task in team:
            task.cancel()
        await asyncio.wait(team)
    return [task.result() for task in first]


async def main() -> int:
    timeline = Timeline(*AGENTS)
    with local_server(faults=SLOW) as server:
        url, key = server.base_url, server.api_key
        async with AsyncOpenAI(base_url=url, api_key=key, max_retries=0) as client:
            kept = await run(partial(ask_model, client), timeline)
        paid = server.stats().answered
    print(timeline)
    return verdict(len(kept) == paid == 1, f"kept {len(kept)} of {paid} answers")


if __name__ == "__main__":
    start(main)
