"""
Four agents ask five questions each, and open twenty connections.

Run:   python broken_client_per_call.py
Next:  python fixed_client_per_call.py
Real:  https://github.com/openai/openai-python/issues/874
"""

import asyncio

from openai import AsyncOpenAI

from racelab import LocalServer, local_server, start, table, verdict

AGENTS = ("scout", "critic", "writer", "lawyer")
TOPICS = ("price", "date", "name", "rivals", "risks")


async def ask(question: str, server: LocalServer) -> None:
    # A new client has a new pool of connections, and none in it is open yet.
    client = AsyncOpenAI(base_url=server.base_url, api_key=server.api_key)
    await client.chat.completions.create(
        model="gpt-5.4-mini", messages=[{"role": "user", "content": question}]
    )


async def research(agent: str, server: LocalServer) -> None:
    """Ask one question after the other: never more than one at a time."""
    for topic in TOPICS:
        await ask(f"As the {agent}, judge the {topic} of our launch.", server)


async def run(server: LocalServer) -> None:
    """Let all agents research at the same time."""
    await asyncio.gather(*(research(agent, server) for agent in AGENTS))


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
