"""What one API key may still send: a bucket of requests and a bucket of tokens.

A bucket starts full, each request takes its share out, and time pours more in. So a
short burst passes at once and a long run passes at the rate of the limit.
"""

import math
from collections.abc import Iterator

from racelab.server.errors import duration, rate_limited, too_many
from racelab.settings import Settings


class TokenBucket:
    """A bucket of at most `burst` units that gains `per_minute` of them a minute.

    `now` is in seconds, on any clock that never goes back.
    """

    def __init__(self, per_minute: float, burst: float | None, now: float) -> None:
        self.per_minute = per_minute
        self.burst = max(1.0, per_minute / 6) if burst is None else burst
        self.level = self.burst
        self.filled = now

    def refill(self, now: float) -> None:
        gained = (now - self.filled) * self.per_minute / 60
        self.level = min(self.burst, self.level + gained)
        self.filled = now

    def wait(self, amount: float) -> float:
        """Return the seconds until `amount` is there, or 0 if under a microsecond."""
        missing = (amount - self.level) * 60 / self.per_minute
        return missing if missing > 1e-6 else 0.0

    def take(self, amount: float) -> None:
        """Lower the level, which may fall to minus one burst."""
        self.level = max(-self.burst, self.level - amount)


class KeyLimits:
    """The two buckets of one key. A limit that is not set has no bucket."""

    def __init__(self, settings: Settings, now: float) -> None:
        self.count_refused = settings.count_refused
        self.buckets: dict[str, TokenBucket] = {}
        if settings.rpm is not None:
            bucket = TokenBucket(settings.rpm, settings.request_burst, now)
            self.buckets["requests"] = bucket
        if settings.tpm is not None:
            bucket = TokenBucket(settings.tpm, settings.token_burst, now)
            self.buckets["tokens"] = bucket

    def admit(self, tokens: int, model: str, now: float) -> None:
        """Take one request and its tokens, or raise the 429 and take no tokens.

        Its `retry-after` includes what this very refusal has cost, so that a client
        that waits that long is let in.
        """
        cost = {"requests": 1, "tokens": tokens}
        for bucket in self.buckets.values():
            bucket.refill(now)
        if not any(b.wait(cost[kind]) for kind, b in self.buckets.items()):
            for kind, bucket in self.buckets.items():
                bucket.take(cost[kind])
            return
        self.charge_refusal()
        large = self.buckets.get("tokens")
        if large is not None and tokens > large.burst:
            message = f"Request too large for {model} on tokens per min: "
            message += f"Limit {large.burst:.0f}, Requested {tokens}."
            raise too_many(message, "tokens")  # to wait does not help
        waits = {kind: b.wait(cost[kind]) for kind, b in self.buckets.items()}
        kind = max(waits, key=lambda name: waits[name])
        raise rate_limited(model, kind, self.buckets[kind].per_minute, waits[kind])

    def charge_refusal(self) -> None:
        """Take one request, because at OpenAI a refused one counts like any other."""
        if self.count_refused and "requests" in self.buckets:
            self.buckets["requests"].take(1)

    def headers(self, now: float) -> Iterator[tuple[str, str]]:
        """Return the headers. `remaining` is what the bucket holds right now."""
        for kind, bucket in self.buckets.items():
            bucket.refill(now)
            remaining = max(0, math.floor(bucket.level + 1e-6))
            yield f"x-ratelimit-limit-{kind}", str(int(bucket.per_minute))
            yield f"x-ratelimit-remaining-{kind}", str(remaining)
            yield f"x-ratelimit-reset-{kind}", duration(bucket.wait(bucket.burst))
