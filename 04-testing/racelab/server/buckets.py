"""What one API key may still send: a bucket of requests and a bucket of tokens.

A bucket starts full, each request takes its share out, and time pours more in. So a
short burst passes at once and a long run passes at the rate of the limit.
"""

import math
from collections.abc import Iterator

from racelab.server.errors import duration, rate_limited, too_large
from racelab.settings import Settings


class Bucket:
    """Holds at most `burst` units and gains `per_minute` of them a minute.

    `now` is always in seconds, of any clock that never goes back.
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
        """Seconds until `amount` is there; less than a microsecond is now."""
        missing = (amount - self.level) * 60 / self.per_minute
        return missing if missing > 1e-6 else 0.0

    def take(self, amount: float) -> None:
        """The level may fall below zero, to minus one burst and no further."""
        self.level = max(-self.burst, self.level - amount)


class Limits:
    """The two buckets of one key; a limit that is not set has no bucket."""

    def __init__(self, settings: Settings, now: float) -> None:
        self.count_refused = settings.count_refused
        self.buckets: dict[str, Bucket] = {}
        if settings.rpm is not None:
            requests = Bucket(settings.rpm, settings.request_burst, now)
            self.buckets["requests"] = requests
        if settings.tpm is not None:
            self.buckets["tokens"] = Bucket(settings.tpm, settings.token_burst, now)

    def admit(self, tokens: int, model: str, now: float) -> None:
        """Takes one request and its tokens, or raises the 429 and takes no tokens.

        Its `retry-after` is true: who waits that long, while nobody else sends with
        this key, is let in. So it includes what this very refusal has cost.
        """
        if not self.buckets:
            return
        cost = {"requests": 1, "tokens": tokens}
        for bucket in self.buckets.values():
            bucket.refill(now)
        large = self.buckets.get("tokens")
        fits = large is None or tokens <= large.burst
        if fits and not any(b.wait(cost[kind]) for kind, b in self.buckets.items()):
            for kind, bucket in self.buckets.items():
                bucket.take(cost[kind])
            return
        self.charge_refusal()
        if large is not None and not fits:
            raise too_large(model, large.burst, tokens)
        waits = {kind: b.wait(cost[kind]) for kind, b in self.buckets.items()}
        kind = max(waits, key=lambda name: waits[name])
        bucket = self.buckets[kind]
        used = bucket.per_minute - max(0.0, bucket.level)
        raise rate_limited(
            model, kind, bucket.per_minute, used, cost[kind], waits[kind]
        )

    def charge_refusal(self) -> None:
        """At OpenAI a refused request counts against the limit like any other."""
        if self.count_refused and "requests" in self.buckets:
            self.buckets["requests"].take(1)

    def headers(self, now: float) -> Iterator[tuple[str, str]]:
        """`limit` is per minute; `remaining` is what the bucket holds right now, so
        never more than the burst; `reset` is the time until it is full again."""
        for kind, bucket in self.buckets.items():
            bucket.refill(now)
            remaining = max(0, math.floor(bucket.level + 1e-6))
            yield f"x-ratelimit-limit-{kind}", str(int(bucket.per_minute))
            yield f"x-ratelimit-remaining-{kind}", str(remaining)
            yield f"x-ratelimit-reset-{kind}", duration(bucket.wait(bucket.burst))
