"""
Four agents ask five questions each, and share four connections.

Run:   python fixed_client_per_call.py
Next:  python broken_closed_loop.py
Real:  https://github.com/openai/openai-python/issues/874
"""

import asyncio

from openai import AsyncOpenAI

from racelab import LocalServer, local_server, start, table, verdict

AGENTS = ("scout", "critic", "writer", "lawyer")
TOPICS = ("price", "date", "name", "rivals", "risks")


async def ask(question: str, client: AsyncOpenAI) -> None:
    # The shared client takes a connection that is free; only without one, a new one.
    await client.chat.completions.create(
        model="gpt-5.4-mini", messages=[{"role": "user", "content": question}]
    )


async def research(agent: str, client: AsyncOpenAI) -> None:
    """Ask one question after the other: never more than one at a time."""
    for topic in TOPICS:
        await ask(f"As the {agent}, judge the {topic} of our launch.", client)


async def run(server: LocalServer) -> None:
    """Let all agents research at the same time."""
    async with AsyncOpenAI(base_url=server.base_url, api_key=server.api_key) as client:
        await asyncio.gather(*(research(agent, client) for agent in AGENTS))


async def main() -> int:
    with local_server(latency=0.05) as server:
        await run(server)
        stats = server.stats()
    opened = stats.connections_opened
    print(table(("calls", stats.answered), ("connections opened", opened)))
    at_once = len(AGENTS)
    return verdict(
        opened <= at_once, f"{opened} connections for {at_once} calls at a time"
    )


if __name__ == "__main__":
    start(main)
