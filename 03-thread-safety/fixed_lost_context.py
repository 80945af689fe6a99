"""
Four agents save in a pool's thread, and all is saved under the right run.

Run:   python fixed_lost_context.py
Next:  python broken_lazy_init.py
Real:  https://github.com/deepset-ai/haystack/pull/9433
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar

from racelab import Ask, Timeline, open_model, start, verdict

AGENTS = ("critic", "lawyer", "planner", "tester")
RUN: ContextVar[str] = ContextVar("run", default="no run")
Log = list[tuple[str, str]]  # agent, the run that it was saved under


def save(agent: str, finding: str, log: Log, timeline: Timeline) -> None:
    """A tool that is not async. As loggers and tracers do, it looks up the run."""
    log.append((agent, RUN.get()))
    timeline.mark(agent, f"saves in {RUN.get()}")


async def research(agent: str, log: Log, ask: Ask, timeline: Timeline) -> None:
    RUN.set(f"{agent}-1")  # for this task, and no other
    finding = await ask(f"As the {agent}, name a risk.")
    timeline.mark(agent, f"is in {RUN.get()}")
    # The same pool, but `save` runs in a copy of this task's context.
    await asyncio.to_thread(save, agent, finding, log, timeline)


async def run(ask: Ask, timeline: Timeline) -> Log:
    """Let all agents research at the same time; give what was saved under which run."""
    log: Log = []
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    await asyncio.to_thread(RUN.get)  # as in a server: the thread is older than the run
    await asyncio.gather(*(research(agent, log, ask, timeline) for agent in AGENTS))
    return log


async def main() -> int:
    timeline = Timeline(*AGENTS)
    async with open_model() as ask:
        log = await run(ask, timeline)
    print(timeline)
    right = sum(saved_under == f"{agent}-1" for agent, saved_under in log)
    return verdict(
        right == len(AGENTS), f"saved {right} of {len(AGENTS)} findings under their run"
    )


if __name__ == "__main__":
    start(main)
