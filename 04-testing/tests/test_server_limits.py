"""The request and token buckets, in a time of their own."""

import random

import pytest

from racelab.server.buckets import KeyLimits
from racelab.server.errors import ApiError, duration
from racelab.settings import Settings


def refused(limits: KeyLimits, tokens: int, now: float) -> ApiError | None:
    """The refusal of a request that comes at `now` seconds, if it is refused."""
    try:
        limits.admit(tokens, "any", now)
    except ApiError as refusal:
        return refusal
    return None


def let_in(limits: KeyLimits, count: int, now: float, tokens: int = 1) -> int:
    """How many of so many requests at the same time are let in."""
    return sum(refused(limits, tokens, now) is None for _ in range(count))


def wait_of(refusal: ApiError | None) -> float:
    """Seconds, from `retry-after-ms`."""
    assert refusal is not None
    return int(refusal.headers["retry-after-ms"]) / 1000


@pytest.mark.parametrize(
    ("rpm", "burst", "now", "passed"),
    [(600, None, 0, 100), (1, None, 0, 1), (600, 7, 0, 7), (600, 7, 3600, 7)],
)
def test_burst_is_the_size_of_the_bucket(
    rpm: float, burst: float | None, now: float, passed: int
) -> None:
    limits = KeyLimits(Settings(rpm=rpm, request_burst=burst), 0)
    assert let_in(limits, 500, now=now) == passed


@pytest.mark.parametrize(
    ("count_refused", "waits"),
    [(True, [2, 3, 4, 5, 6, 6, 6, 6, 6, 6]), (False, [1] * 10)],
)
def test_refusals_add_at_most_one_burst_of_waiting(
    count_refused: bool, waits: list[float]
) -> None:
    settings = Settings(rpm=60, request_burst=5, count_refused=count_refused)
    limits = KeyLimits(settings, 0)
    assert let_in(limits, 5, now=0) == 5
    assert [wait_of(refused(limits, 1, now=0)) for _ in range(10)] == waits


def test_request_larger_than_the_bucket_gets_no_retry_after() -> None:
    limits = KeyLimits(Settings(tpm=6000), 0)
    refusal = refused(limits, 1001, now=0)
    assert refusal is not None
    assert refusal.status == 429
    assert "Request too large for any on tokens" in refusal.message
    assert refusal.headers == {}
    assert refused(limits, 1000, now=0) is None


def test_refusal_says_the_limit_and_the_wait() -> None:
    limits = KeyLimits(Settings(rpm=60, request_burst=1, count_refused=False), 0)
    assert let_in(limits, 1, now=0) == 1
    refusal = refused(limits, 1, now=0.25)
    assert refusal is not None
    assert (refusal.error["type"], refusal.error["code"]) == (
        "requests",
        "rate_limit_exceeded",
    )
    assert "Limit 60. Please try again in 750ms." in refusal.message
    assert refusal.headers == {"retry-after": "1", "retry-after-ms": "750"}


def test_the_rate_holds_over_a_minute() -> None:
    limits = KeyLimits(Settings(rpm=600, count_refused=False), 0)
    passed = sum(let_in(limits, 3, now=ms / 1000) for ms in range(0, 60_001, 10))
    assert passed == 100 + 600


def test_a_refused_request_costs_a_request_and_no_tokens() -> None:
    limits = KeyLimits(Settings(rpm=60, tpm=6000), 0)
    assert let_in(limits, 1, now=0, tokens=1000) == 1
    assert let_in(limits, 3, now=0, tokens=1000) == 0
    headers = dict(limits.headers(0))
    assert headers["x-ratelimit-remaining-requests"] == "6"
    assert headers["x-ratelimit-remaining-tokens"] == "0"


def test_the_refusal_names_the_limit_that_lasts_longer() -> None:
    limits = KeyLimits(Settings(rpm=60, request_burst=1, tpm=60, token_burst=50), 0)
    assert let_in(limits, 1, now=0, tokens=50) == 1
    refusal = refused(limits, 30, now=0)
    assert refusal is not None
    assert refusal.error["type"] == "tokens"
    assert wait_of(refusal) == 30


def test_headers_name_the_rest_and_the_time_until_full() -> None:
    limits = KeyLimits(Settings(rpm=600, tpm=60_000), 0)
    limits.admit(3000, "any", now=0)
    assert dict(limits.headers(0)) == {
        "x-ratelimit-limit-requests": "600",
        "x-ratelimit-remaining-requests": "99",
        "x-ratelimit-reset-requests": "100ms",
        "x-ratelimit-limit-tokens": "60000",
        "x-ratelimit-remaining-tokens": "7000",
        "x-ratelimit-reset-tokens": "3s",
    }
    assert dict(limits.headers(2))["x-ratelimit-remaining-tokens"] == "9000"
    assert dict(limits.headers(9))["x-ratelimit-reset-tokens"] == "0s"


def test_retry_after_is_exact_to_the_millisecond() -> None:
    """Any limits, any requests before: `retry-after-ms` is exact to its millisecond."""
    told = 0
    for seed in range(200):
        draw = random.Random(seed)
        settings = Settings(
            rpm=draw.choice([None, draw.uniform(1, 5000)]),
            tpm=draw.uniform(100, 100_000),
            request_burst=draw.choice([None, draw.uniform(1, 50)]),
            token_burst=draw.uniform(100, 5000),
            count_refused=draw.random() < 0.5,
        )
        limits, now = KeyLimits(settings, 0), 0.0
        for _ in range(200):
            tokens = draw.randint(1, 100)
            refusal = refused(limits, tokens, now)
            if refusal is not None:
                told += 1
                wait = wait_of(refusal)
                if not settings.count_refused:
                    too_early = now + max(0, wait - 0.002)
                    assert refused(limits, tokens, too_early) is not None
                now += wait
                assert refused(limits, tokens, now) is None
            now += draw.expovariate(50)
    assert told > 1000


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0, "0s"), (0.006, "6ms"), (0.0055, "6ms"), (1, "1s"), (8.64, "8.64s")),
        *((59.9999, "1m0s"), (73.588, "1m13.588s"), (360, "6m0s")),
    ],
)
def test_a_duration_is_written_as_openai_writes_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text
