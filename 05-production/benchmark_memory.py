"""
Queued questions: gather holds them all in memory, agents only those that are in work.

Run:   python benchmark_memory.py  (with --full: up to 100,000)
Next:  python research.py --help

The questions come out of a generator, and each answer is dropped when it is there. The
model is a function that lets the others run and answers: no server, no limit. What is
counted is what Python allocates at most (`tracemalloc`), not what it had before.
"""

import asyncio
import gc
import sys
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator

from agents import Limits, Team
from baselines import wants_full
from racelab import result, start, table

SHORT = (1_000, 10_000, 30_000)  # counting is slow: so that it takes 15 s
FULL = (1_000, 10_000, 100_000)
CONCURRENT = 20
AskMany = Callable[[int], Awaitable[int]]


async def ask(question: str) -> str:
    await asyncio.sleep(0)  # the others run
    return "Our rate limit is too low."


def questions(number: int) -> Iterator[str]:
    return (f"What is risk number {n}?" for n in range(number))


async def gather(number: int) -> int:
    """A semaphore bounds what is in flight, and a task waits for each question."""
    slots, answered = asyncio.Semaphore(CONCURRENT), 0

    async def ask_one(question: str) -> None:
        nonlocal answered
        async with slots:
            await ask(question)
        answered += 1

    await asyncio.gather(*map(ask_one, questions(number)))
    return answered


async def agents(number: int) -> int:
    """Pulls the next question when a slot is free."""
    answered = 0
    async with Team(ask, Limits(concurrency=CONCURRENT)) as team:
        async for outcome in team.run(questions(number)):
            answered += outcome.answer is not None
    return answered


IN_MEMORY: dict[str, AskMany] = {
    "gather + semaphore": gather,
    "agents": agents,
}


def peak(baseline: AskMany, number: int) -> int:
    """Bytes at most. Raises AssertionError if a question is lost."""

    async def run() -> int:
        gc.collect()
        tracemalloc.start()
        try:
            assert await baseline(number) == number
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    return asyncio.run(run())


def main(full: bool = False) -> int:
    print(f"measuring, about {'40' if full else '15'} s", file=sys.stderr)
    queued = FULL if full else SHORT
    peaks = {}
    for name, baseline in IN_MEMORY.items():
        peak(baseline, queued[0])  # warm up: what is made only once
        peaks[name] = [peak(baseline, number) for number in queued]
    growth = {name: sizes[-1] / sizes[0] for name, sizes in peaks.items()}
    rows = [
        (name, *(f"{size / 2**20:.2f} MiB" for size in sizes), f"{growth[name]:.2f}x")
        for name, sizes in peaks.items()
    ]
    heads = (f"{number:,} queued" for number in queued)
    print(table(("peak memory", *heads, "growth"), *rows))
    return result(
        f"{queued[-1]:,} questions take {growth['agents']:.2f}x the memory of "
        f"{queued[0]:,} with agents, {growth['gather + semaphore']:.0f}x with gather"
    )


if __name__ == "__main__":
    start(lambda: main(wants_full(__doc__)))
