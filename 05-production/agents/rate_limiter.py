"""No faster than the limits allow: requests and tokens, first come, first served."""

import asyncio
from collections.abc import Callable
from random import Random

from aiolimiter import AsyncLimiter

from .limits import Limits
from .results import Remaining, TooLarge

# Held back of a burst, never of the rate: room for what is sent earlier or later.
HELD_BACK = 0.1  # a tenth of it, but
LONGEST_HELD = 0.25  # seconds' worth of the rate at most
PART = 0.1  # seconds' worth: what a waiting call pays at once
JITTER = 0.25  # of a pause: so much later, at most, do the senders go on


class Bucket:
    """An `AsyncLimiter` that can be paid in parts, gives back, and takes corrections.

    `burst` units are there after a rest, and `per_minute` come in a minute. Only one
    caller may pay at a time: `AsyncLimiter` serves small amounts first, which starves
    large ones.
    """

    def __init__(self, per_minute: float, burst: float | None) -> None:
        self.rate = per_minute / 60  # units a second
        self.size = max(1, self.rate) if burst is None else burst
        self.held = min(HELD_BACK * self.size, LONGEST_HELD * self.rate)
        self.owed = 0.0  # less than zero: credit
        self._paid = 0.0  # by the one who is paying
        self._limiter = self._full()

    def _full(self) -> AsyncLimiter:
        return AsyncLimiter(self.size, self.size / self.rate)

    async def pay(self, amount: float, is_off: Callable[[], bool]) -> bool:
        """Wait until `amount` is there, and take it: True.

        Called off or cancelled, it has taken nothing. Who waits pays in parts: so it
        sees what is given back meanwhile, and may want more than the bucket holds.
        """
        if self.owed < 0 and self._limiter.has_capacity(max(0, self.size + self.owed)):
            self._limiter, self.owed = self._full(), 0.0  # fuller than full is full
        rested = self._limiter.has_capacity(self.size)
        try:
            while (due := amount + self.owed - self._paid) > 0 and not is_off():
                limiter = self._limiter
                if not limiter.has_capacity(due):
                    due = min(due, self.size, PART * self.rate)
                await limiter.acquire(due)
                if limiter is self._limiter:
                    self._paid += due
            if is_off():
                return False
            self.owed += amount + (self.held if rested else 0)
            return True
        finally:
            self.owed -= self._paid
            self._paid = 0.0

    async def cap_at(self, left: float) -> None:
        """No more than `left` is there, says the server."""
        left = min(max(left, 0), self.size)
        more = left + 1 + self.owed - self._paid
        if self._limiter.has_capacity(max(0, min(more, self.size))):
            self._limiter, self.owed, self._paid = self._full(), 0.0, 0.0
            await self._limiter.acquire(self.size - left)  # at once: it is full


class RateLimiter:
    """Says when the next request may be sent. A refusal stops all, then one by one."""

    def __init__(self, limits: Limits, rng: Random) -> None:
        self._rng = rng
        self._turn = asyncio.Lock()  # of whoever is next
        self._others = asyncio.Lock()  # one of those who may not go first is in line
        self._first = 0  # calls that go first, and wait
        self._requests = self._tokens = None
        if limits.rpm is not None:
            self._requests = Bucket(limits.rpm, limits.request_burst)
        if limits.tpm is not None:
            self._tokens = Bucket(limits.tpm, limits.token_burst)
        self._most = limits.token_burst or limits.tpm  # tokens of one request
        self._concurrent = limits.concurrency
        self._refusals = 0
        self._open_at = 0.0  # by the loop's clock
        self._after = 0.0  # tokens that are there when a pause ends
        self._paused = False
        self._spread: list[float] = []  # seconds before the next ones, after a pause

    def check(self, tokens: float) -> None:
        """Raises `TooLarge`."""
        if self._most is not None and tokens > self._most:
            raise TooLarge(
                f"about {tokens:.0f} tokens: more than the {self._most:.0f} that the "
                "limit ever lets through at once"
            )

    async def acquire(self, tokens: float, first: bool = False) -> None:
        """Return when one request with so many tokens may be sent, and send it then.

        `first` goes to the head of the line: it was sent before, and refused or failed.
        """
        if first:
            self._first += 1
            try:
                await self._wait_in_line(tokens, first)
            finally:
                self._first -= 1
        else:
            async with self._others:
                await self._wait_in_line(tokens, first)

    async def _wait_in_line(self, tokens: float, first: bool) -> None:
        is_paid = False
        while not is_paid:
            async with self._turn:  # a lock is first come, first served
                await self._pause()
                if first or not self._first:
                    is_paid = await self._pay(tokens)
                else:  # it may be cancelled, and leave only when it runs
                    await asyncio.sleep(0)

    async def _pay(self, tokens: float) -> bool:
        """False: somebody was refused meanwhile, so what was paid for is gone."""
        before = self._refusals

        def is_off() -> bool:
            return before != self._refusals

        while True:
            if self._tokens and not await self._tokens.pay(tokens, is_off):
                return False
            paid_at, is_paid = asyncio.get_running_loop().time(), False
            try:
                is_paid = not self._requests or await self._requests.pay(1, is_off)
            finally:
                if not is_paid:
                    self.reconcile(tokens, 0)
            waited = asyncio.get_running_loop().time() > paid_at + 0.001
            if not (is_paid and waited and self._tokens and self._requests):
                return is_paid
            # The tokens are of a moment that has passed: take both again, at once.
            self.reconcile(tokens, 0)
            self._requests.owed -= 1

    async def _pause(self) -> None:
        loop, refusals = asyncio.get_running_loop(), -1
        while refusals != self._refusals:  # somebody may be refused while we wait
            refusals = self._refusals
            while (wait := self._open_at - loop.time()) > 0:  # noqa: ASYNC110
                await asyncio.sleep(wait)
            if self._paused:
                self._paused = False
                await self.update_from_headers(Remaining(1, self._after))
            if self._spread:
                await asyncio.sleep(self._spread.pop())

    def reconcile(self, reserved: float, used: float) -> None:
        """A request for which so many tokens were taken has used so many."""
        if self._tokens is not None:
            self._tokens.owed += used - reserved

    def refused(self, wait: float, tokens: float) -> float:
        """A 429: nobody sends for `wait` seconds. Gives how long it is with jitter.

        The refused request stays paid, as it counts at the server; its tokens do not.
        """
        self._refusals += 1
        self._paused, self._after = True, tokens
        now, pause = asyncio.get_running_loop().time(), wait
        pause += self._rng.uniform(0, JITTER * wait)
        self._open_at = max(self._open_at, now + pause)
        if self._requests is None:  # no rate is known: spread those who have waited
            gap = JITTER * wait / self._concurrent
            self._spread = [gap] * (self._concurrent - 1) + [0.0]
        return pause

    async def update_from_headers(self, remaining: Remaining) -> None:
        """The server says what is left: less than we think if others send, too."""
        if self._requests is not None and remaining.requests is not None:
            await self._requests.cap_at(remaining.requests)
        if self._tokens is not None and remaining.tokens is not None:
            await self._tokens.cap_at(remaining.tokens)
