"""
Two workers share a list of tasks, and do some of them twice.

Run:   python broken_duplicate_work.py
Next:  python fixed_duplicate_work.py
Real:  https://github.com/NousResearch/hermes-agent/pull/2086
"""

import asyncio
from collections import Counter

from racelab import Ask, Timeline, open_model, start, verdict

WORKERS = ("dan", "cyd")
TASKS = ("press", "video", "logo")


async def work(
    worker: str, todo: list[str], done: Counter[str], ask: Ask, timeline: Timeline
) -> None:
    """Take open tasks and do them until there are none."""
    while todo:
        task = todo[0]
        timeline.mark(worker, f"takes {task}")
        await ask(f"You are {worker}. Plan the task: {task}.")
        # While this worker planned, the other one saw the same task.
        if task in todo:
            todo.remove(task)
        await ask(f"You are {worker}. Do the task: {task}.")
        timeline.mark(worker, f"did {task}")
        done[task] += 1


async def run(ask: Ask, timeline: Timeline) -> Counter[str]:
    """Let all workers work at the same time; give how often each task was done."""
    todo, done = list(TASKS), Counter[str]()
    team = (work(worker, todo, done, ask, timeline) for worker in WORKERS)
    await asyncio.gather(*team)
    return done


async def main() -> int:
    timeline = Timeline(*WORKERS)
    async with open_model() as ask:
        done = await run(ask, timeline)
    print(timeline)
    once, wanted = sum(done[task] == 1 for task in TASKS), len(TASKS)
    return verdict(once == wanted, f"did {once} of {wanted} tasks exactly once")


if __name__ == "__main__":
    start(main)
