"""
Larger leases spare the limiter work, and let some workers run ahead of others.

Run:   python -m beyond_one_machine.simulate_leases
Next:  leases.py

100 workers share 6,000 requests a minute for 30 seconds of virtual time. Each has 50
calls that wait for nothing but their turn, and a message to the limiter takes 1 ms.
"asked": of the limiter, per second. "fewest", "most": calls of one worker within ten
seconds; a fair share is 10. "longest wait": between two calls of one worker. "in one
second": at most, of all; the server's bucket is one of 100 requests. "refused": by it.
"""

import asyncio
import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import TypeVar

if __name__ == "__main__" and not __package__:  # started by its path
    module = "beyond_one_machine.simulate_leases"
    print(f"error: from 05-production, run python -m {module}", file=sys.stderr)
    sys.exit(2)

from agents import Limits
from beyond_one_machine.leases import Lease, LeasedRateLimiter, LeaseRequest, Limiter
from racelab import start, table, verdict
from racelab.explore import clock
from racelab.server.buckets import TokenBucket

T = TypeVar("T")
WORKERS, CALLS = 100, 50
RATE, SECONDS, WINDOW = 100, 30, 10  # requests a second
LIMITS = Limits(rpm=60 * RATE, request_burst=RATE)
LATENCY = 0.4  # of the model
MESSAGE = 0.001


class DelayedLimiter:
    """A limiter on another machine: each message takes time."""

    def __init__(self, limiter: Limiter) -> None:
        self.limiter = limiter

    async def lease(self, request: LeaseRequest) -> Lease:
        return await self._delayed(self.limiter.lease(request))

    async def used_up(self, worker: str, number: int) -> None:
        await self._delayed(self.limiter.used_up(worker, number))

    async def refused(self, wait: float, tokens: float) -> int:
        return await self._delayed(self.limiter.refused(wait, tokens))

    async def news(self, seen: int) -> tuple[int, float]:
        return await self._delayed(self.limiter.news(seen))

    async def _delayed(self, call: Awaitable[T]) -> T:
        await asyncio.sleep(MESSAGE)
        answer = await call
        await asyncio.sleep(MESSAGE)
        return answer


@dataclass
class AccountRecord:
    """A record of what the server has received."""

    sent: list[tuple[float, int]] = field(default_factory=list)  # seconds, worker
    refused: int = 0
    asked: int = 0

    def most_in_a_second(self) -> int:
        times = [at for at, _ in self.sent]
        return max(bisect_left(times, at + 1) - i for i, at in enumerate(times))

    def longest_wait(self) -> float:
        """Return the longest time without a call of some worker, in seconds."""
        last, longest = dict.fromkeys(range(WORKERS), 0.0), 0.0
        for at, worker in [*self.sent, *((SECONDS, each) for each in range(WORKERS))]:
            longest = max(longest, at - last[worker])
            last[worker] = at
        return longest

    def calls_of_each(self) -> list[int]:
        """Return how many calls each worker had in each window."""
        counts = Counter((int(at / WINDOW), worker) for at, worker in self.sent)
        windows, workers = range(SECONDS // WINDOW), range(WORKERS)
        return [counts[window, worker] for window in windows for worker in workers]


async def work(batch: int) -> AccountRecord:
    loop, limiter, record = asyncio.get_running_loop(), Limiter(LIMITS), AccountRecord()
    begun = loop.time()
    bucket = TokenBucket(60 * RATE, RATE, begun)

    async def call(rate_limiter: LeasedRateLimiter, worker: int) -> None:
        while True:
            await rate_limiter.acquire(0)
            bucket.refill(loop.time())
            record.refused += bucket.wait(1) > 0
            bucket.take(1)
            record.sent.append((loop.time() - begun, worker))
            await asyncio.sleep(LATENCY)

    async def worker(number: int) -> None:
        async with LeasedRateLimiter(
            LIMITS, DelayedLimiter(limiter), f"{number}", batch
        ) as rate_limiter:
            await asyncio.gather(*(call(rate_limiter, number) for _ in range(CALLS)))

    _, pending = await asyncio.wait(
        [asyncio.create_task(worker(number)) for number in range(WORKERS)],
        timeout=SECONDS,
    )
    record.asked = (await limiter.counts()).leases
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    return record


def main() -> int:
    heads = ("lease", "asked", "of the limit", "fewest", "most", "longest wait")
    rows: list[tuple[object, ...]] = [(*heads, "in one second", "refused")]
    refused, used = 0, 1.0
    for batch in (1, 2, 5, 10, 20, 50):
        record = clock.run(work(batch))
        share, each = len(record.sent) / RATE / SECONDS, record.calls_of_each()
        counts = (f"{record.asked / SECONDS:.0f}", f"{share:.3f}", min(each), max(each))
        wait = f"{record.longest_wait():.1f} s"
        rows.append((batch, *counts, wait, record.most_in_a_second(), record.refused))
        refused, used = refused + record.refused, min(used, share)
    print(table(*rows))
    holds = not refused and 0.95 <= used <= 1
    return verdict(holds, f"{refused} refused, {used:.3f} of the limit used or more")


if __name__ == "__main__":
    start(main)
