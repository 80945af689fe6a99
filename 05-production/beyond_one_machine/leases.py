"""One account's limits for many processes: requests and tokens, leased in batches.

One `Limiter` knows the limits. Each process has a `LeasedRateLimiter`, which leases
batches of requests and tokens from it. Pass that to your team:

    async with LeasedRateLimiter(limits, limiter, "worker 1") as rate_limiter:
        async with Team(ask, limits, rate_limiter=rate_limiter) as team:
            ...

`limiter` is a `Limiter` in the same loop, or an object that passes calls on to one (see
cluster.py for Ray). The limits hold for all processes together, because unused leases
count as a part of the burst: the bucket fills up only as far as they leave room.
"""

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from itertools import islice
from random import Random
from typing import Any, Protocol, Self

from agents import Limits, RateLimiter, Remaining
from agents.rate_limiter import JITTER, bucket_of
from agents.token_bucket import TokenBucket

BATCH = 10  # requests of a lease
LEASE_SECONDS = 0.5  # a lease is at most what the limit lets through in this time
RELEASE_SECONDS = 0.1  # a worker that is idle for this long releases its lease
LEASE_EXPIRY = 1.0  # seconds until a lease is void for its worker
LEASE_EXPIRY_MARGIN = 1.0  # more, for the limiter, because messages take time
ROUNDING_ERROR = 1e-6  # requests or tokens
UNLIMITED = 1e12  # per minute
UNKNOWN = Remaining()
Task = asyncio.Task[None]


@dataclass(frozen=True, slots=True)
class Lease:
    requests: float
    tokens: float
    pauses: int  # how many there had been when it was granted


@dataclass(frozen=True, slots=True)
class LeaseRequest:
    """A message from a worker that wants a lease, and gives back what is left."""

    worker: str  # a name that no other worker has, not even after a restart
    number: int  # of this message, so that one that comes twice gives back once
    wants: tuple[float, ...]  # tokens of each call in its line
    spare: int = 0  # requests to add, if there are plenty
    requests: float = 0.0  # given back
    tokens: float = 0.0  # given back, or below zero: used beyond the lease
    pauses: int = 0  # that the worker has heard of
    pause: float = 0.0  # seconds that are left of the last one
    left: Remaining = UNKNOWN  # the last headers of the server
    age: float = 0.0  # of these headers, in seconds


class LimiterProtocol(Protocol):
    """The part of a `Limiter` that workers call, possibly from another machine."""

    async def lease(self, request: LeaseRequest) -> Lease: ...
    async def used_up(self, worker: str, number: int) -> None: ...
    async def refused(self, wait: float, tokens: float) -> int: ...
    async def news(self, seen: int) -> tuple[int, float]: ...


def empty_bucket(per_minute: float | None, burst: float | None) -> TokenBucket:
    """Return a bucket that is empty, so that a start is never a burst."""
    bucket = bucket_of(per_minute or UNLIMITED, burst)
    bucket.cap_at(0.0)
    return bucket


@dataclass(slots=True)
class PendingLease:
    """A lease that is granted, and possibly not used yet."""

    requests: float
    tokens: float
    until: float


@dataclass(slots=True)
class Counts:
    """Counts of what a limiter has done so far."""

    leases: int = 0
    requests: float = 0.0  # leased
    given_back: float = 0.0  # of these
    pauses: int = 0
    workers: set[str] = field(default_factory=set)


class Limiter:
    """Grants leases, first come, first served. After a 429, none until the pause ends.

    `restarted`: another limiter was here before, and its leases can still be used. So
    this one waits until they have expired.
    """

    def __init__(self, limits: Limits, restarted: bool = False) -> None:
        if limits.rpm is None and limits.tpm is None:
            raise ValueError("rpm or tpm: there is no limit to share")
        self._requests = empty_bucket(limits.rpm, limits.request_burst)
        self._tokens = empty_bucket(limits.tpm, limits.token_burst)
        self._quiet = LEASE_EXPIRY + LEASE_EXPIRY_MARGIN if restarted else 0.0
        self._open_at: float | None = None  # by the loop's clock
        self._pending: dict[str, PendingLease] = {}
        self._numbers: dict[str, int] = {}  # worker -> its last message
        self._line = asyncio.Lock()  # first come, first served
        self._largest = 0.0  # tokens of the call at its head
        self._back, self._news = asyncio.Event(), asyncio.Event()
        self._counts = Counts()
        self._pauses, self._closed = 0, False

    async def lease(self, request: LeaseRequest) -> Lease:
        """Wait until there is enough for the calls in the worker's line, or some."""
        self._hear(request)
        async with self._line:
            self._largest = request.wants[0]
            while True:
                now, calls = self._now(), self._fit(request.wants)
                wait = self._wait(now, request.wants[:calls])
                if wait <= 0:
                    return self._grant(now, request, calls)
                self._back.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._back.wait()

    async def used_up(self, worker: str, number: int) -> None:
        """Take back the lease of message `number`, if the worker has sent no other."""
        if self._numbers.get(worker) == number:
            self._take_back(worker)

    async def refused(self, wait: float, tokens: float) -> int:
        """Pause for `wait` seconds after a 429. Return how many pauses there were.

        All leases are void. When the pause ends, the server has enough for the refused
        request, and its `tokens`.
        """
        self._pauses += 1
        self._counts.pauses += 1
        self._pause(wait, tokens)
        return self._pauses

    async def news(self, seen: int) -> tuple[int, float]:
        """Wait for a pause. Return how many there were, and the seconds left of it.

        If the limiter is closed, return no more pauses than were `seen`.
        """
        self._pauses = max(self._pauses, seen)
        if self._pauses == seen and not self._closed:
            await self._news.wait()
        now = self._now()
        assert self._open_at is not None
        return self._pauses, max(0.0, self._open_at - now)

    async def close(self) -> None:
        """End all waiting for news."""
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
        self._pending.clear()
        for each, level in ((self._requests, 1.0), (self._tokens, tokens)):
            each.level, each.filled_at = min(each.size, level), self._open_at
        self._back.set()
        self._news.set()
        self._news = asyncio.Event()

    def _hear(self, request: LeaseRequest) -> None:
        if request.pauses > self._pauses:  # of the limiter that was here before
            self._pauses = request.pauses
            self._pause(request.pause, request.wants[0])
        if request.number <= self._numbers.get(request.worker, 0):
            return
        self._numbers[request.worker] = request.number
        requests, tokens = self._take_back(request.worker)
        if request.pauses == self._pauses:  # else what it gives back is void
            self._requests.add(request.requests, requests)
            self._tokens.add(request.tokens, tokens)
        else:
            self._tokens.add(min(0.0, request.tokens), tokens)
        self._counts.given_back += request.requests
        for each, left in (
            (self._requests, request.left.requests),
            (self._tokens, request.left.tokens),
        ):
            if left is not None:
                each.cap_at(left + 1 + each.rate * request.age)

    def _take_back(self, worker: str) -> tuple[float, float]:
        self._room(self._now())  # until now, its lease left no more room than this
        self._pending.pop(worker, None)
        self._back.set()
        return self._room(self._now())

    def _room(self, now: float) -> tuple[float, float]:
        """Fill both buckets. Return how full each can be, beside what is leased.

        The bucket grows for a call that is larger than its size.
        """
        self._pending = {w: it for w, it in self._pending.items() if it.until > now}
        pending = self._pending.values()
        requests = self._requests.size - sum(lease.requests for lease in pending)
        most = max(self._largest, self._tokens.size) - sum(
            lease.tokens for lease in pending
        )
        self._requests.refill(now, requests)
        self._tokens.refill(now, most)
        return requests, most

    def _fit(self, wants: Sequence[float]) -> int:
        """Return for how many of these calls a lease can be: at least one."""
        requests, tokens = self._room(self._now())
        requests = min(requests, LEASE_SECONDS * self._requests.rate)
        tokens = min(tokens, LEASE_SECONDS * self._tokens.rate)
        calls, total = 1, wants[0]
        for want in wants[1:]:
            total += want
            if calls + 1 > requests or total > tokens:
                break
            calls += 1
        return calls

    def _wait(self, now: float, wants: Sequence[float]) -> float:
        """Return the seconds until there can be enough for these calls."""
        assert self._open_at is not None
        if now < self._open_at:
            return self._open_at - now
        room = self._room(now)
        longest = 0.0
        for each, need, most in zip(
            (self._requests, self._tokens), (len(wants), sum(wants)), room, strict=True
        ):
            wait = each.wait(need)
            if wait and need > most + ROUNDING_ERROR:  # other workers have it
                wait = min(lease.until for lease in self._pending.values()) - now
            longest = max(longest, wait)
        return longest

    def _grant(self, now: float, request: LeaseRequest, calls: int) -> Lease:
        requests, tokens = calls, sum(request.wants[:calls])
        spare = self._spare(request, calls, tokens)
        requests, tokens = requests + spare, tokens + spare * tokens / calls
        self._requests.take(requests)
        self._tokens.take(tokens)
        until = now + LEASE_EXPIRY + LEASE_EXPIRY_MARGIN
        self._pending[request.worker] = PendingLease(requests, tokens, until)
        self._counts.leases += 1
        self._counts.requests += requests
        self._counts.workers.add(request.worker)
        return Lease(requests, tokens, self._pauses)

    def _spare(self, request: LeaseRequest, calls: int, tokens: float) -> int:
        """Return how many unasked requests to add, from the buckets' upper halves."""
        most = LEASE_SECONDS * self._requests.rate - calls
        requests = self._requests.level - calls - self._requests.size / 2
        rest = self._tokens.level - tokens - self._tokens.size / 2
        each = max(tokens / calls, ROUNDING_ERROR)
        return max(0, int(min(request.spare, most, requests, rest / each)))


class LeasedRateLimiter(RateLimiter):
    """A rate limiter that spends leases, for all calls of one worker.

    Use it within `async with`.
    """

    def __init__(
        self,
        limits: Limits,
        limiter: LimiterProtocol,
        worker: str,
        batch: int = BATCH,
        rng: Random | None = None,
    ) -> None:
        # No `super().__init__()`: of `RateLimiter`, only `check` is used unchanged.
        self._largest = limits.token_burst or limits.tpm  # tokens of one request
        self._rng = rng or Random()
        self._limiter, self._worker, self._batch = limiter, worker, batch
        self._turn, self._others = asyncio.Lock(), asyncio.Lock()
        self._first = 0  # waiting calls that go first
        self._in_line: dict[object, float] = {}  # call -> its tokens
        self._open_at = 0.0
        self._requests_left = self._tokens_left = 0.0  # of the lease,
        self._until = 0.0  # then it is void
        self._refund = 0.0  # tokens that were not used, or below zero: a debt
        self._refund_until = 0.0
        self._number = self._pauses = 0
        self._headers = (UNKNOWN, 0.0)  # the server's last ones, and when they came
        self._tasks = set[Task]()
        self._leasing: Task | None = None

    async def __aenter__(self) -> Self:
        self._start(self._listen())
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

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
            await asyncio.sleep(0)  # so that calls that go first do so

    def reconcile(self, estimated_tokens: float, used: float) -> None:
        self._forget_what_is_void()
        self._refund += estimated_tokens - used
        self._refund_until = self._now() + LEASE_EXPIRY

    def refused(self, wait: float, tokens: float) -> float:
        wait += self._rng.uniform(0, JITTER * wait)
        self._stop(wait)
        self._start(self._report_refusal(wait, tokens))
        return wait

    async def update_from_headers(self, remaining: Remaining) -> None:
        if remaining != UNKNOWN:
            self._headers = (remaining, self._now())

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
        there = self._tokens_left + self._refund + ROUNDING_ERROR
        if self._now() < self._open_at or self._requests_left < 1 or there < tokens:
            return False
        self._requests_left -= 1
        self._tokens_left -= tokens
        if self._tokens_left < 0:
            self._refund += self._tokens_left
            self._tokens_left = 0.0
        if self._requests_left < 1 and len(self._in_line) == 1:
            self._start(self._release(self._number))
        return True

    async def _lease(self, call: object) -> None:
        """Wait for a lease for this call. If the call is cancelled, the lease stays."""
        if self._leasing is None or self._leasing.done():
            self._leasing = self._start(self._fetch(call))
        await asyncio.shield(self._leasing)

    async def _fetch(self, call: object) -> None:
        lease = await self._limiter.lease(self._lease_request(call))
        if lease.pauses >= self._pauses:  # else it is from before a pause
            self._pauses = lease.pauses
            self._requests_left, self._tokens_left = lease.requests, lease.tokens
            self._until = self._now() + LEASE_EXPIRY
            self._refund_until = max(self._refund_until, self._until)

    def _lease_request(self, call: object) -> LeaseRequest:
        """Return a message that asks for a lease and gives back all that is left."""
        self._forget_what_is_void()
        self._number += 1
        others = (tokens for each, tokens in self._in_line.items() if each is not call)
        wants = (self._in_line.get(call, 0.0), *islice(others, self._batch - 1))
        left, at = self._headers
        request = LeaseRequest(
            *(self._worker, self._number, wants, self._batch - len(wants)),
            *(self._requests_left, self._tokens_left + self._refund),
            *(self._pauses, max(0.0, self._open_at - self._now())),
            *(left, self._now() - at),
        )
        self._headers = (UNKNOWN, 0.0)
        self._requests_left = self._tokens_left = self._refund = 0.0
        return request

    def _stop(self, wait: float) -> None:
        """Send nothing for `wait` seconds. What is leased is void."""
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

    async def _report_refusal(self, wait: float, tokens: float) -> None:
        self._hear(await self._limiter.refused(wait, tokens), 0)

    async def _release(self, number: int) -> None:
        await asyncio.sleep(RELEASE_SECONDS)
        if self._number == number:
            await self._limiter.used_up(self._worker, number)

    async def _listen(self) -> None:
        seen = -1
        while self._pauses > seen:
            seen = self._pauses
            self._hear(*await self._limiter.news(seen))
