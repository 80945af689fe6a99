"""No faster than the limits allow: requests and tokens, first come, first served."""

import asyncio
from random import Random

from .limits import Limits
from .results import Remaining, TooLarge
from .token_bucket import TokenBucket

# A part of each burst stays unused, because requests travel slower or faster.
BURST_RESERVE = 0.1  # of the burst,
BURST_RESERVE_SECONDS = 0.25  # but no more than the rate makes good in this time
LOOK_AGAIN_SECONDS = 0.1  # so that a waiting request sees refunds
JITTER = 0.25  # of a pause: it gets longer by up to this share


def bucket_of(per_minute: float, burst: float | None) -> TokenBucket:
    """Return a bucket for a limit. An unknown `burst` is one second's worth."""
    rate = per_minute / 60
    burst = max(1, rate) if burst is None else burst
    reserve = min(BURST_RESERVE * burst, BURST_RESERVE_SECONDS * rate)
    return TokenBucket(rate, max(1, burst - reserve))


class RateLimiter:
    """A limiter for requests and tokens. A refusal pauses all requests of the team."""

    def __init__(self, limits: Limits, rng: Random) -> None:
        self._rng = rng
        self._turn = asyncio.Lock()  # held by the head of the line
        self._others = asyncio.Lock()  # lets one at a time in line behind `first` ones
        self._first = 0  # waiting requests that go first
        self._requests = self._tokens = None
        if limits.rpm is not None:
            self._requests = bucket_of(limits.rpm, limits.request_burst)
        if limits.tpm is not None:
            self._tokens = bucket_of(limits.tpm, limits.token_burst)
        self._saving_for = 0.0  # tokens of the head of the line
        self._largest = limits.token_burst or limits.tpm  # tokens of one request
        self._concurrency = limits.concurrency
        self._refusals = 0
        self._open_at = 0.0  # by the loop's clock
        self._tokens_after_pause: float | None = None  # None: no pause ended
        self._spread: list[float] = []  # seconds before the next ones, after a pause

    def check(self, tokens: float) -> None:
        """Raise `TooLarge` if a request of `tokens` tokens can never be sent."""
        if self._largest is not None and tokens > self._largest:
            raise TooLarge(
                f"about {tokens:.0f} tokens: more than the {self._largest:.0f} that "
                "the limit ever lets through at once"
            )

    async def acquire(self, tokens: float, first: bool = False) -> None:
        """Wait until a request of `tokens` tokens is allowed. Send it at once then.

        With `first` it goes to the head of the line, because it was sent before and
        refused, or failed. Cancelled while it waits, it has taken nothing.
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
        is_taken = False
        while not is_taken:
            async with self._turn:  # a lock is first come, first served
                await self._pause()
                if first or not self._first:
                    is_taken = await self._take(tokens)
                else:  # a cancelled `first` one leaves the line only when it runs
                    await asyncio.sleep(0)

    async def _pause(self) -> None:
        """Wait for the end of a pause, and then for this request's place after it."""
        loop, refusals = asyncio.get_running_loop(), -1
        while refusals != self._refusals:  # another refusal can come while this waits
            refusals = self._refusals
            while (wait := self._open_at - loop.time()) > 0:  # noqa: ASYNC110
                await asyncio.sleep(wait)
            if self._tokens_after_pause is not None:
                self._refill()
                self._cap_at(1, self._tokens_after_pause)
                self._tokens_after_pause = None
            if self._spread:
                await asyncio.sleep(self._spread.pop())

    async def _take(self, tokens: float) -> bool:
        """Take one request and its tokens, as soon as there is enough of both.

        Return False if a request is refused before that: then nothing is taken.
        """
        refusals, amounts = (
            self._refusals,
            [(self._requests, 1), (self._tokens, tokens)],
        )
        needs = [(bucket, amount) for bucket, amount in amounts if bucket is not None]
        self._saving_for = tokens
        try:
            while refusals == self._refusals:
                self._refill()
                wait = max((bucket.wait(n) for bucket, n in needs), default=0.0)
                if not wait:
                    for bucket, amount in needs:
                        bucket.take(amount)
                    return True
                await asyncio.sleep(min(wait, LOOK_AGAIN_SECONDS))
            return False
        finally:
            self._saving_for = 0.0
            if self._tokens is not None:
                self._tokens.cap_at(self._tokens.size)

    def _refill(self) -> None:
        """Fill the buckets. One larger request can save up more than the size."""
        now = asyncio.get_running_loop().time()
        if self._requests is not None:
            self._requests.refill(now)
        if self._tokens is not None:
            self._tokens.refill(now, max(self._tokens.size, self._saving_for))

    def _cap_at(self, requests: float | None, tokens: float | None) -> None:
        if self._requests is not None and requests is not None:
            self._requests.cap_at(requests)
        if self._tokens is not None and tokens is not None:
            self._tokens.cap_at(tokens)

    def reconcile(self, estimated_tokens: float, used: float) -> None:
        """Correct the tokens that were taken for a request: it has used `used`."""
        if self._tokens is not None:
            self._refill()
            full = max(self._tokens.size, self._saving_for)
            self._tokens.add(estimated_tokens - used, full)

    def refused(self, wait: float, tokens: float) -> float:
        """Pause all requests for `wait` seconds after a 429. Return it with jitter.

        The refused request stays counted, as it is at the server. Its `tokens` do not.
        """
        self._refusals += 1
        self._tokens_after_pause = tokens
        pause = wait + self._rng.uniform(0, JITTER * wait)
        self._open_at = max(self._open_at, asyncio.get_running_loop().time() + pause)
        if self._requests is None:  # no rate is known, so waiting requests spread
            gap = JITTER * wait / self._concurrency
            self._spread = [gap] * (self._concurrency - 1) + [0.0]
        return pause

    async def update_from_headers(self, remaining: Remaining) -> None:
        """Lower the levels to what the server has left, if others send, too."""
        self._refill()
        for bucket, left in (
            (self._requests, remaining.requests),
            (self._tokens, remaining.tokens),
        ):
            # The server rounds down, so less than one unit more is no difference.
            if bucket is not None and left is not None and bucket.level >= left + 1:
                bucket.cap_at(max(0.0, left))
