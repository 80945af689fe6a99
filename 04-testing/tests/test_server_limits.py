"""The request and token buckets: in a time of their own, and over HTTP."""

import math
import random
from typing import Any

import pytest
from openai import (
    AsyncOpenAI,
    BadRequestError,
    DefaultAsyncHttpxClient,
    RateLimitError,
)

from racelab.server import Server, serve
from racelab.server.buckets import KeyLimits
from racelab.server.errors import ApiError
from racelab.settings import Settings

HELLO: dict[str, Any] = {
    "model": "any",
    "messages": [{"role": "user", "content": "Hello"}],
}


def client_of(server: Server, **options: Any) -> AsyncOpenAI:
    """Without certificates, whose loading would take longer than most tests."""
    plain = DefaultAsyncHttpxClient(verify=False, trust_env=False)
    options = {"api_key": "any", "max_retries": 0, **options}
    return AsyncOpenAI(base_url=server.base_url, http_client=plain, **options)


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


def test_a_bucket_starts_with_ten_seconds_worth() -> None:
    assert let_in(KeyLimits(Settings(rpm=600), 0), 500, now=0) == 100
    assert let_in(KeyLimits(Settings(rpm=1), 0), 500, now=0) == 1


def test_the_burst_can_be_chosen() -> None:
    assert let_in(KeyLimits(Settings(rpm=600, request_burst=7), 0), 500, now=0) == 7


def test_a_full_bucket_gains_nothing_by_waiting() -> None:
    limits = KeyLimits(Settings(rpm=600, request_burst=7), 0)
    assert let_in(limits, 500, now=3600) == 7


def test_without_a_limit_everybody_is_let_in() -> None:
    limits = KeyLimits(Settings(), 0)
    assert let_in(limits, 500, now=0, tokens=10**9) == 500
    assert dict(limits.headers(0)) == {}


def test_the_rate_holds_over_a_minute() -> None:
    limits = KeyLimits(Settings(rpm=600, count_refused=False), 0)
    passed = sum(let_in(limits, 3, now=ms / 1000) for ms in range(0, 60_001, 10))
    assert passed == 100 + 600


def test_tokens_are_taken_as_requests_are() -> None:
    limits = KeyLimits(Settings(tpm=6000), 0)
    assert let_in(limits, 50, now=0, tokens=100) == 10
    assert let_in(limits, 50, now=1, tokens=100) == 1


def test_a_refused_request_costs_a_request_and_no_tokens() -> None:
    limits = KeyLimits(Settings(rpm=60, tpm=6000), 0)
    assert let_in(limits, 1, now=0, tokens=1000) == 1
    assert let_in(limits, 3, now=0, tokens=1000) == 0
    headers = dict(limits.headers(0))
    assert headers["x-ratelimit-remaining-requests"] == "6"
    assert headers["x-ratelimit-remaining-tokens"] == "0"


def test_refused_requests_add_at_most_one_burst_of_waiting() -> None:
    limits = KeyLimits(Settings(rpm=60, request_burst=5), 0)
    assert let_in(limits, 5, now=0) == 5
    waits = [wait_of(refused(limits, 1, now=0)) for _ in range(10)]
    assert waits == [2, 3, 4, 5, 6, 6, 6, 6, 6, 6]


def test_refusals_can_be_free() -> None:
    limits = KeyLimits(Settings(rpm=60, request_burst=5, count_refused=False), 0)
    assert let_in(limits, 5, now=0) == 5
    assert [wait_of(refused(limits, 1, now=0)) for _ in range(10)] == [1] * 10


def test_the_refusal_names_the_limit_that_lasts_longer() -> None:
    limits = KeyLimits(Settings(rpm=60, request_burst=1, tpm=60, token_burst=50), 0)
    assert let_in(limits, 1, now=0, tokens=50) == 1
    refusal = refused(limits, 30, now=0)
    assert refusal is not None
    assert refusal.error["type"] == "tokens"
    assert wait_of(refusal) == 30


def test_request_larger_than_the_bucket_gets_no_retry_after() -> None:
    limits = KeyLimits(Settings(tpm=6000), 0)
    refusal = refused(limits, 1001, now=0)
    assert refusal is not None
    assert refusal.status == 429
    assert refusal.error["message"] == (
        "Request too large for any in organization org-racelab on tokens per min "
        "(TPM): Limit 1000, Requested 1001. The input or output tokens must be reduced "
        "in order to run successfully. Visit "
        "https://platform.openai.com/account/rate-limits to learn more."
    )
    assert "retry-after" not in refusal.headers
    assert refused(limits, 1000, now=0) is None


def test_the_words_of_a_refusal_are_openais() -> None:
    limits = KeyLimits(Settings(rpm=60, request_burst=1, count_refused=False), 0)
    assert let_in(limits, 1, now=0) == 1
    refusal = refused(limits, 1, now=0.25)
    assert refusal is not None
    assert refusal.error == {
        "message": "Rate limit reached for any in organization org-racelab on requests "
        "per min (RPM): Limit 60, Used 60, Requested 1. Please try again in 750ms. "
        "Visit https://platform.openai.com/account/rate-limits to learn more.",
        "type": "requests",
        "param": None,
        "code": "rate_limit_exceeded",
    }
    assert refusal.headers == {"retry-after": "1", "retry-after-ms": "750"}


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


async def test_a_refusal_reaches_the_sdk_with_its_headers() -> None:
    settings = Settings(latency=0, rpm=60, request_burst=2)
    async with (
        serve(settings) as server,
        client_of(server) as client,
    ):
        for _ in range(2):
            await client.chat.completions.create(**HELLO)
        with pytest.raises(RateLimitError) as caught:
            await client.chat.completions.create(**HELLO)
        assert server.stats().refused == {"429": 1}
        assert server.stats().answered == 2
    headers = caught.value.response.headers
    assert caught.value.type == "requests"
    assert int(headers["retry-after"]) == math.ceil(
        int(headers["retry-after-ms"]) / 1000
    )
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert headers["x-ratelimit-limit-requests"] == "60"


@pytest.mark.parametrize("stream", [False, True])
async def test_every_answer_carries_the_six_headers(stream: bool) -> None:
    settings = Settings(latency=0, chunk_delay=0, rpm=60, tpm=6000)
    async with (
        serve(settings) as server,
        client_of(server) as client,
    ):
        raw = await client.chat.completions.with_raw_response.create(
            **HELLO, stream=stream
        )
        if stream:
            assert [chunk async for chunk in raw.parse()]
        billed = server.stats().tokens_billed
    limits = {n: v for n, v in raw.headers.items() if n.startswith("x-ratelimit-")}
    assert len(limits) == 6
    assert limits["x-ratelimit-remaining-requests"] == "9"
    assert limits["x-ratelimit-remaining-tokens"] == str(1000 - billed)


async def test_request_takes_prompt_and_max_tokens_from_the_bucket() -> None:
    settings = Settings(latency=0, tpm=6000)
    async with (
        serve(settings) as server,
        client_of(server) as client,
    ):
        raw = await client.chat.completions.with_raw_response.create(
            **HELLO, max_tokens=100, n=2
        )
    prompt = 4 + 2
    remaining = int(raw.headers["x-ratelimit-remaining-tokens"])
    assert remaining == 1000 - prompt - 200


async def test_each_key_has_its_buckets_and_reset_refills_them() -> None:
    settings = Settings(latency=0, rpm=60, request_burst=1)
    async with (
        serve(settings) as server,
        client_of(server, api_key="one") as client,
    ):
        await client.chat.completions.create(**HELLO)
        await client.with_options(api_key="two").chat.completions.create(**HELLO)
        with pytest.raises(RateLimitError):
            await client.chat.completions.create(**HELLO)
        server.reset()
        await client.chat.completions.create(**HELLO)


async def test_malformed_request_counts_against_the_limit() -> None:
    settings = Settings(latency=0, rpm=60, request_burst=2)
    async with (
        serve(settings) as server,
        client_of(server, api_key="one") as client,
    ):
        for _ in range(2):
            with pytest.raises(BadRequestError):
                await client.chat.completions.create(model="any", messages=[])
        with pytest.raises(RateLimitError):
            await client.chat.completions.create(**HELLO)
