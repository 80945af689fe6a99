"""One account's limits for many processes: requests and tokens, leased in batches.

One `Limiter` knows the limits. Each process has a `LeasedRateLimiter`, which leases a
batch of requests and tokens from it, and is the rate limiter of a team:

    async with LeasedRateLimiter(limits, limiter, "worker 1") as pace:
        async with Team(ask, limits, rate_limiter=pace) as team:
            ...

`limiter` is a `Limiter` in the same loop, or whatever passes calls on to one: see
cluster.py for Ray. The limits hold for all together, because what is leased and not
used yet is a part of the burst that the server allows: the bucket fills up only as far
as the leases leave room.
"""

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from itertools import islice
from random import Random
from typing import Any, Protocol, Self

from agents import Limits, RateLimiter, Remaining, TooLarge
from agents.rate_limiter import JITTER, bucket_of
from agents.token_bucket import TokenBucket

BATCH = 10  # requests of a lease
SHARE = 0.5  # seconds: a lease is no more than what the limit lets through in these
SOON = 0.1  # seconds: who wants no other lease so soon says that this one is used up
EXPIRY = 1.0  # seconds after which a lease is void,
MARGIN = 1.0  # and so much later it is void for the limiter, too: messages take time
NEARLY = 1e-6  # of a request or a token: what is missing by so much is there
UNLIMITED = 1e12  # a minute
UNKNOWN = Remaining()
Task = asyncio.Task[None]


@dataclass(frozen=True, slots=True)
class Lease:
    requests: float
    tokens: float
    pauses: int  # that there were when it was granted


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker says when it wants a lease."""

    worker: str  # no two have the same, not even after a restart
    number: int  # counts its reports: one that comes twice gives back once
    wants: tuple[float, ...]  # tokens of each call in its line
    spare: int = 0  # requests beyond these, if there are plenty
    requests: float = 0.0  # given back
    tokens: float = 0.0  # given back; below zero: used, and not leased
    pauses: int = 0  # that it has heard of,
    pause: float = 0.0  # and how many seconds are left of the last one
    left: Remaining = UNKNOWN  # as the server said,
    age: float = 0.0  # so many seconds ago


class Lender(Protocol):
    """What a worker needs of a `Limiter`, here or far away."""

    async def lease(self, report: Report) -> Lease: ...
    async def used_up(self, worker: str, number: int) -> None: ...
    async def refused(self, wait: float, tokens: float) -> int: ...
    async def news(self, seen: int) -> tuple[int, float]: ...


def empty_bucket(per_minute: float | None, burst: float | None) -> TokenBucket:
    """Nothing is there at first, so a start is never a burst."""
    bucket = bucket_of(per_minute or UNLIMITED, burst)
    bucket.cap_at(0.0)
    return bucket


@dataclass(slots=True)
class Held:
    """A lease that may not be used yet."""

    requests: float
    tokens: float
    until: float


@dataclass(slots=True)
class Counts:
    """What a limiter has done so far."""

    leases: int = 0
    requests: float = 0.0  # leased
    given_back: float = 0.0  # of these
    pauses: int = 0
    workers: set[str] = field(default_factory=set)


class Limiter:
    """Leases, first come, first served; after a 429, none until the pause is over.

    `restarted`: another one, whose leases may still be used, was here before. So this
    one waits until they have run out.
    """

    def __init__(self, limits: Limits, restarted: bool = False) -> None:
        if limits.rpm is None and limits.tpm is None:
            raise ValueError("rpm or tpm: there is no limit to share")
        self._requests = empty_bucket(limits.rpm, limits.request_burst)
        self._tokens = empty_bucket(limits.tpm, limits.token_burst)
        self._quiet = EXPIRY + MARGIN if restarted else 0.0
        self._open_at: float | None = None  # by the loop's clock
        self._held: dict[str, Held] = {}
        self._numbers: dict[str, int] = {}  # worker -> its last report
        self._line = asyncio.Lock()  # first come, first served
        self._largest = 0.0  # tokens of the call at its head
        self._back, self._news = asyncio.Event(), asyncio.Event()
        self._counts = Counts()
        self._pauses, self._closed = 0, False

    async def lease(self, report: Report) -> Lease:
        """Wait until there is enough for the calls in the worker's line, or some."""
        self._hear(report)
        async with self._line:
            self._largest = report.wants[0]
            while True:
                now, calls = self._now(), self._fit(report.wants)
                wait = self._wait(now, report.wants[:calls])
                if wait <= 0:
                    return self._grant(now, report, calls)
                self._back.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._back.wait()

    async def used_up(self, worker: str, number: int) -> None:
        """A worker wants no other lease yet, after that of this report."""
        if self._numbers.get(worker) == number:
            self._take_back(worker)

    async def refused(self, wait: float, tokens: float) -> int:
        """A worker has seen a 429: no lease for so long. Gives how many there were.

        What is leased is void. When the pause ends, the server has enough for the one
        that was refused, with so many tokens.
        """
        self._pauses += 1
        self._counts.pauses += 1
        self._pause(wait, tokens)
        return self._pauses

    async def news(self, seen: int) -> tuple[int, float]:
        """Wait for a pause. Gives how many there were, and the seconds left of it.

        It gives no more than were `seen` when the limiter is closed.
        """
        self._pauses = max(self._pauses, seen)
        if self._pauses == seen and not self._closed:
            await self._news.wait()
        now = self._now()
        assert self._open_at is not None
        return self._pauses, max(0.0, self._open_at - now)

    async def close(self) -> None:
        """Nobody waits for news any more."""
        self._closed = True
        self._news.set()

    async def counts(self) -> Counts:
        return self._counts

    def _now(self) -> float:
        now = asyncio.get_running_loop().time()
        if self._open_at is None:
            self._open_at = now + self._quiet
            self._requests.filled_at = self._tokens.filled_at = self._open_at
        return now

    def _pause(self, wait: float, tokens: float) -> None:
        now = self._now()
        assert self._open_at is not None
        self._open_at = max(self._open_at, now + wait)
        self._held.clear()
        for each, level in ((self._requests, 1.0), (self._tokens, tokens)):
            each.level, each.filled_at = min(each.size, level), self._open_at
        self._back.set()
        self._news.set()
        self._news = asyncio.Event()

    def _hear(self, report: Report) -> None:
        if report.pauses > self._pauses:  # of the limiter that was here before
            self._pauses = report.pauses
            self._pause(report.pause, report.wants[0])
        if report.number <= self._numbers.get(report.worker, 0):
            return
        self._numbers[report.worker] = report.number
        requests, tokens = self._take_back(report.worker)
        if report.pauses == self._pauses:  # else what it gives back is void
            self._requests.add(report.requests, requests)
            self._tokens.add(report.tokens, tokens)
        else:
            self._tokens.add(min(0.0, report.tokens), tokens)
        self._counts.given_back += report.requests
        for each, left in (
            (self._requests, report.left.requests),
            (self._tokens, report.left.tokens),
        ):
            if left is not None:
                each.cap_at(left + 1 + each.rate * report.age)

    def _take_back(self, worker: str) -> tuple[float, float]:
        self._room(self._now())  # until now, its lease left no more room than this
        self._held.pop(worker, None)
        self._back.set()
        return self._room(self._now())

    def _room(self, now: float) -> tuple[float, float]:
        """Fill up. Gives how full each bucket can be, beside what is leased.

        For a call that is larger than the bucket, it is made as large.
        """
        self._held = {w: held for w, held in self._held.items() if held.until > now}
        held = self._held.values()
        requests = self._requests.size - sum(lease.requests for lease in held)
        most = max(self._largest, self._tokens.size) - sum(
            lease.tokens for lease in held
        )
        self._requests.refill(now, requests)
        self._tokens.refill(now, most)
        return requests, most

    def _fit(self, wants: Sequence[float]) -> int:
        """How many of these calls a lease can be for: one at least."""
        requests, tokens = self._room(self._now())
        requests = min(requests, SHARE * self._requests.rate)
        tokens = min(tokens, SHARE * self._tokens.rate)
        calls, total = 1, wants[0]
        for want in wants[1:]:
            total += want
            if calls + 1 > requests or total > tokens:
                break
            calls += 1
        return calls

    def _wait(self, now: float, wants: Sequence[float]) -> float:
        """Seconds until there may be enough for these calls."""
        assert self._open_at is not None
        if now < self._open_at:
            return self._open_at - now
        room = self._room(now)
        longest = 0.0
        for each, need, most in zip(
            (self._requests, self._tokens), (len(wants), sum(wants)), room, strict=True
        ):
            wait = each.wait(need)
            if wait and need > most + NEARLY:  # others have it: until when?
                wait = min(held.until for held in self._held.values()) - now
            longest = max(longest, wait)
        return longest

    def _grant(self, now: float, report: Report, calls: int) -> Lease:
        requests, tokens = calls, sum(report.wants[:calls])
        spare = self._spare(report, calls, tokens)
        requests, tokens = requests + spare, tokens + spare * tokens / calls
        self._requests.take(requests)
        self._tokens.take(tokens)
        until = now + EXPIRY + MARGIN
        self._held[report.worker] = Held(requests, tokens, until)
        self._counts.leases += 1
        self._counts.requests += requests
        self._counts.workers.add(report.worker)
        return Lease(requests, tokens, self._pauses)

    def _spare(self, report: Report, calls: int, tokens: float) -> int:
        """Requests that nobody waits for: of the upper half of the buckets only."""
        most = SHARE * self._requests.rate - calls
        requests = self._requests.level - calls - self._requests.size / 2
        rest = self._tokens.level - tokens - self._tokens.size / 2
        each = max(tokens / calls, NEARLY)
        return max(0, int(min(report.spare, most, requests, rest / each)))


class LeasedRateLimiter(RateLimiter):
    """A team's pace, of leases. For all calls of one worker; use it as a context."""

    def __init__(
        self,
        limits: Limits,
        lender: Lender,
        worker: str,
        batch: int = BATCH,
        rng: Random | None = None,
    ) -> None:
        # Of `RateLimiter`, only its five methods are kept: each is another one here.
        self._largest = limits.token_burst or limits.tpm  # tokens of one request
        self._rng = rng or Random()
        self._lender, self._worker, self._batch = lender, worker, batch
        self._turn, self._others = asyncio.Lock(), asyncio.Lock()
        self._first = 0  # calls that go first, and wait
        self._in_line: dict[object, float] = {}  # call -> its tokens
        self._open_at = 0.0
        self._requests_left = self._tokens_left = 0.0  # of the lease,
        self._until = 0.0  # which is void from then on
        self._refund = 0.0  # tokens that were reserved and not used; below zero: a debt
        self._refund_until = 0.0
        self._number = self._pauses = 0
        self._said = (UNKNOWN, 0.0)  # what the server said, and when
        self._tasks = set[Task]()
        self._leasing: Task | None = None

    async def __aenter__(self) -> Self:
        self._start(self._listen())
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def check(self, tokens: float) -> None:
        if self._largest is not None and tokens > self._largest:
            most = f"more than the {self._largest:.0f} that the limit ever lets through"
            raise TooLarge(f"about {tokens:.0f} tokens: {most} at once")

    async def acquire(self, tokens: float, first: bool = False) -> None:
        call = object()
        self._in_line[call] = tokens
        self._first += first
        try:
            async with AsyncExitStack() as stack:
                if not first:
                    await stack.enter_async_context(self._others)
                await self._take_turns(call, tokens, first)
        finally:
            self._first -= first
            del self._in_line[call]

    async def _take_turns(self, call: object, tokens: float, first: bool) -> None:
        while True:
            async with self._turn:
                while first or not self._first:
                    if self._spend(tokens):
                        return
                    await self._lease(call)
            await asyncio.sleep(0)  # those who go first do so

    def reconcile(self, reserved: float, used: float) -> None:
        self._forget_what_is_void()
        self._refund += reserved - used
        self._refund_until = self._now() + EXPIRY

    def refused(self, wait: float, tokens: float) -> float:
        wait += self._rng.uniform(0, JITTER * wait)
        self._stop(wait)
        self._start(self._tell(wait, tokens))
        return wait

    async def update_from_headers(self, remaining: Remaining) -> None:
        if remaining != UNKNOWN:
            self._said = (remaining, self._now())

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _forget_what_is_void(self) -> None:
        now = self._now()
        if now >= self._until:
            self._requests_left = self._tokens_left = 0.0
        if now >= self._refund_until:
            self._refund = min(0.0, self._refund)

    def _spend(self, tokens: float) -> bool:
        self._forget_what_is_void()
        there = self._tokens_left + self._refund + NEARLY
        if self._now() < self._open_at or self._requests_left < 1 or there < tokens:
            return False
        self._requests_left -= 1
        self._tokens_left -= tokens
        if self._tokens_left < 0:
            self._refund += self._tokens_left
            self._tokens_left = 0.0
        if self._requests_left < 1 and len(self._in_line) == 1:
            self._start(self._say_that_it_is_used_up(self._number))
        return True

    async def _lease(self, call: object) -> None:
        """Wait for a lease, with this call in front. Cancelled, it still comes."""
        if self._leasing is None or self._leasing.done():
            self._leasing = self._start(self._fetch(call))
        await asyncio.shield(self._leasing)

    async def _fetch(self, call: object) -> None:
        lease = await self._lender.lease(self._report(call))
        if lease.pauses >= self._pauses:  # else it was granted before a pause
            self._pauses = lease.pauses
            self._requests_left, self._tokens_left = lease.requests, lease.tokens
            self._until = self._now() + EXPIRY
            self._refund_until = max(self._refund_until, self._until)

    def _report(self, call: object) -> Report:
        """Ask for a lease, and give back all that is left."""
        self._forget_what_is_void()
        self._number += 1
        others = (tokens for each, tokens in self._in_line.items() if each is not call)
        wants = (self._in_line.get(call, 0.0), *islice(others, self._batch - 1))
        said, at = self._said
        report = Report(
            *(self._worker, self._number, wants, self._batch - len(wants)),
            *(self._requests_left, self._tokens_left + self._refund),
            *(self._pauses, max(0.0, self._open_at - self._now())),
            *(said, self._now() - at),
        )
        self._said = (UNKNOWN, 0.0)
        self._requests_left = self._tokens_left = self._refund = 0.0
        return report

    def _stop(self, wait: float) -> None:
        """Nothing is sent for so long, and what is leased is void."""
        self._open_at = max(self._open_at, self._now() + wait)
        self._requests_left = self._tokens_left = 0.0
        self._refund = min(0.0, self._refund)

    def _hear(self, pauses: int, wait: float) -> None:
        if pauses > self._pauses:
            self._pauses = pauses
            self._stop(wait)

    def _start(self, work: Coroutine[Any, Any, None]) -> Task:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _tell(self, wait: float, tokens: float) -> None:
        self._hear(await self._lender.refused(wait, tokens), 0)

    async def _say_that_it_is_used_up(self, number: int) -> None:
        await asyncio.sleep(SOON)
        if self._number == number:
            await self._lender.used_up(self._worker, number)

    async def _listen(self) -> None:
        seen = -1
        while self._pauses > seen:
            seen = self._pauses
            self._hear(*await self._lender.news(seen))
