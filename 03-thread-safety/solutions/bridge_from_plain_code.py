"""
Exercise 5: a program of plain functions, and the loop of its async agents in a thread.

Run:   python solutions/bridge_from_plain_code.py
Next:  ../04-testing/README.md
"""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Thread

from racelab import Ask, Timeline, local_server, open_model, start, verdict

AGENTS = ("critic", "lawyer", "seller")


async def advise(agent: str, ask: Ask, timeline: Timeline) -> str:
    """The expert: an async agent."""
    timeline.mark("expert", f"asks for {agent}")
    return await ask(f"What would an expert tell the {agent}?")


def consult(
    agent: str, ask: Ask, loop: asyncio.AbstractEventLoop, timeline: Timeline
) -> str:
    """A plain function, in one of several threads."""
    timeline.mark(agent, "consults")
    advice = asyncio.run_coroutine_threadsafe(advise(agent, ask, timeline), loop)
    says = advice.result(timeout=10)
    timeline.mark(agent, "has advice")
    return says


@contextmanager
def loop_in_a_thread() -> Iterator[asyncio.AbstractEventLoop]:
    """One loop for the whole program. The client is opened, used and closed in it."""
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def run(ask: Ask, loop: asyncio.AbstractEventLoop, timeline: Timeline) -> list[str]:
    """Let all agents consult at the same time; give what the expert says."""
    with ThreadPoolExecutor(len(AGENTS)) as pool:
        return list(pool.map(lambda agent: consult(agent, ask, loop, timeline), AGENTS))


def main() -> int:
    timeline = Timeline(*AGENTS, "expert")
    with local_server(latency=0.3) as server, loop_in_a_thread() as loop:
        model = open_model(server)
        ask = asyncio.run_coroutine_threadsafe(model.__aenter__(), loop).result(10)
        try:
            advice = run(ask, loop, timeline)
        finally:
            closed = model.__aexit__(None, None, None)
            asyncio.run_coroutine_threadsafe(closed, loop).result(10)
    print(timeline)
    print(*map(": ".join, zip(AGENTS, advice, strict=True)), sep="\n")
    return verdict(
        len(advice) == len(AGENTS), f"got {len(advice)} of {len(AGENTS)} answers"
    )


if __name__ == "__main__":
    start(main)
