"""The rate limiter: no faster than the limits allow, no slower; in virtual time.

The witness is a server's own pair of buckets, which refuses what comes too early.
"""

import asyncio
from random import Random

import pytest
from fixed_draws import Longest

from agents import Answer, Limits, RateLimiter, Remaining, StatusError, Team, TooLarge
from racelab.server.buckets import KeyLimits
from racelab.server.errors import ApiError
from racelab.settings import Settings

TICK = 1e-6  # seconds: what floats, and the server, do not tell from nothing


def now() -> float:
    return asyncio.get_running_loop().time()


def at(*seconds: float) -> object:
    return pytest.approx(list(seconds), abs=TICK)


def a_limiter(**limits: float) -> RateLimiter:
    return RateLimiter(Limits(**limits), Longest())  # type: ignore[arg-type]


async def sent(
    limiter: RateLimiter, *tokens: float, first: bool = False
) -> list[float]:
    """They come now, in this order: after how many seconds each is sent."""
    come = now()

    async def send(amount: float) -> float:
        await limiter.acquire(amount, first=first)
        return now() - come

    return await asyncio.gather(*map(send, tokens))


class LimitedServer:
    """Refuses what comes faster than these limits allow."""

    def __init__(self, latency: float = 0, **limits: float) -> None:
        self.buckets = KeyLimits(Settings(**limits), now())  # type: ignore[arg-type]
        self.latency, self.arrived, self.refused = latency, list[float](), 0

    async def ask(self, question: str) -> Answer:
        """A question is the number of its tokens, and maybe more."""
        self.arrived.append(now())
        tokens = tokens_of(question)
        try:
            self.buckets.admit(tokens, "any", now())
        except ApiError as error:
            self.refused += 1
            wait = int(error.headers["retry-after-ms"]) / 1000
            raise StatusError(
                429, retry_after=wait, remaining=self.remaining()
            ) from None
        await asyncio.sleep(self.latency)
        return Answer("Yes.", tokens, 0, self.remaining())

    def wait(self, tokens: int) -> float:
        """Seconds until so many tokens would not be refused."""
        waits = [0.0]
        for name, bucket in self.buckets.buckets.items():
            bucket.refill(now())
            waits.append(bucket.wait(tokens if name == "tokens" else 1))
        return max(waits)

    def remaining(self) -> Remaining:
        names = "requests", "tokens"
        head = dict(self.buckets.headers(now()))
        left = [head.get(f"x-ratelimit-remaining-{name}") for name in names]
        return Remaining(*(None if n is None else float(n) for n in left))


def tokens_of(question: str) -> int:
    return int(question.split()[0])


# The bucket


@pytest.mark.virtual_time
async def test_burst_goes_at_once_then_one_by_one() -> None:
    limiter = a_limiter(rpm=600, request_burst=10)
    assert await sent(limiter, *[1] * 12) == at(*[0] * 9, 0.1, 0.2, 0.3)


@pytest.mark.virtual_time
async def test_unknown_burst_is_one_seconds_worth() -> None:
    """Where nobody says what the server lets through at once: one second's worth."""
    assert (await sent(a_limiter(rpm=600), *[1] * 12))[9:] == at(0.1, 0.2, 0.3)
    assert await sent(a_limiter(tpm=600), *[3] * 5) == at(0, 0, 0, 0.3, 0.6)


@pytest.mark.virtual_time
async def test_reserve_of_a_large_burst_is_limited_by_rate() -> None:
    times = await sent(a_limiter(rpm=60, request_burst=100), *[1] * 100)
    assert times == at(*[0] * 99, 0.25)


@pytest.mark.virtual_time
@pytest.mark.parametrize(
    ("calls", "rate", "burst"), [(1_500, 128, 80), (100, 64, 1), (100, 1, 10)]
)
async def test_calls_take_as_long_as_the_limit_itself_does(
    calls: int, rate: float, burst: float
) -> None:
    server = LimitedServer(0.5, rpm=60 * rate, request_burst=burst)
    limits = Limits(concurrency=calls, rpm=60 * rate, request_burst=burst)
    async with Team(server.ask, limits) as team:
        outcomes = [outcome async for outcome in team.run(["1"] * calls)]
    assert all(outcome.answer for outcome in outcomes)
    assert server.refused == 0
    held_back = min(0.1 * burst, 0.25 * rate)
    ideal = (calls - burst) / rate + 0.5
    assert ideal - TICK <= now() <= ideal + held_back / rate + TICK


@pytest.mark.virtual_time
@pytest.mark.parametrize("seed", range(3))
async def test_no_interval_gets_more_than_the_limit_allows(seed: int) -> None:
    """Questions of all sizes, that come now and then, now together."""
    limits = {"rpm": 300, "request_burst": 7, "tpm": 60_000, "token_burst": 900}
    server, rng = LimitedServer(**limits), Random(seed)
    limiter, arrived = a_limiter(**limits), list[tuple[float, int]]()

    async def send(tokens: int, wait: float) -> None:
        await asyncio.sleep(wait)
        await limiter.acquire(tokens)
        arrived.append((now(), tokens))
        await server.ask(f"{tokens}")

    come = [rng.choice([5, 20, rng.uniform(0, 40)]) for _ in range(150)]
    await asyncio.gather(*(send(rng.randint(1, 900), wait) for wait in come))
    assert server.refused == 0
    for first, (begun, _) in enumerate(arrived):
        tokens = 0
        for count, (time, amount) in enumerate(arrived[first:], 1):
            tokens += amount
            assert count <= 7 + 5 * (time - begun) + TICK
            assert tokens <= 900 + 1_000 * (time - begun) + TICK


# Requests and tokens together


@pytest.mark.virtual_time
async def test_request_larger_than_the_bucket_saves_up() -> None:
    limiter = a_limiter(tpm=600)  # 10 a second, and so many at once
    first, large, last = await sent(limiter, 1, 500, 1)
    assert first == 0
    assert large == pytest.approx(50, abs=1)
    assert last == pytest.approx(large + 0.1, abs=TICK)


@pytest.mark.virtual_time
@pytest.mark.parametrize("limit", [{"tpm": 600}, {"tpm": 6_000, "token_burst": 600}])
async def test_request_that_never_fits_is_too_large(
    limit: dict[str, float],
) -> None:
    limiter = a_limiter(**limit)
    limiter.check(600)
    with pytest.raises(TooLarge, match=r"601 tokens: more than the 600"):
        limiter.check(601)


# Reserved and settled, taken and given back


@pytest.mark.virtual_time
async def test_unused_tokens_go_to_the_next_request() -> None:
    limiter = a_limiter(tpm=60, token_burst=100)
    await limiter.acquire(99)
    limiter.reconcile(99, used=19)
    assert await sent(limiter, 80, 1) == at(0, 0.25)


@pytest.mark.virtual_time
async def test_what_was_used_beyond_the_estimate_is_owed() -> None:
    limiter = a_limiter(tpm=60, token_burst=100)
    await limiter.acquire(9)
    limiter.reconcile(9, used=99)
    assert await sent(limiter, 10) == at(9.25)


@pytest.mark.virtual_time
async def test_refund_never_overfills_the_bucket() -> None:
    limiter = a_limiter(tpm=60, token_burst=100)
    await limiter.acquire(90)
    await asyncio.sleep(1000)
    limiter.reconcile(90, used=0)
    assert await sent(limiter, 99, 10) == at(0, 9.25)


@pytest.mark.virtual_time
async def test_late_debt_is_taken_from_a_full_bucket() -> None:
    limiter = a_limiter(tpm=60, token_burst=100)
    await limiter.acquire(9)
    await asyncio.sleep(1000)
    limiter.reconcile(9, used=99)
    assert await sent(limiter, 10) == at(0.25)


@pytest.mark.virtual_time
@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_large_request_leaves_no_overfull_bucket(is_cancelled: bool) -> None:
    limiter = a_limiter(tpm=600)
    large = asyncio.create_task(limiter.acquire(500))
    if is_cancelled:
        await asyncio.sleep(40)
        large.cancel()
        await asyncio.gather(large, return_exceptions=True)
    else:
        await large
        await asyncio.sleep(1000)
        limiter.reconcile(500, used=0)
    assert await sent(limiter, 9, 9) == at(0, 0.9)


@pytest.mark.virtual_time
async def test_waiting_request_sees_refunds() -> None:
    limiter = a_limiter(tpm=60, token_burst=100)
    await limiter.acquire(99)
    asyncio.get_running_loop().call_later(1, limiter.reconcile, 99, 9)
    await limiter.acquire(90)
    assert 1 <= now() <= 1.2  # it looks before each part that it pays


@pytest.mark.virtual_time
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("after", [0, 5, 10, 10.25, 11, 90, 90.25, 99.75, 100, 190])
async def test_cancelled_waiter_takes_nothing(after: float, first: bool) -> None:
    """At any moment: for a request, for tokens, in line, and just when it is sent."""
    limits = {"rpm": 6, "request_burst": 1, "tpm": 60, "token_burst": 100}
    server, limiter = LimitedServer(**limits), a_limiter(**limits)

    async def send(tokens: int) -> None:
        await limiter.acquire(tokens, first)
        await server.ask(f"{tokens}")

    await send(90)
    others = [asyncio.create_task(send(100)) for _ in range(3)]
    await asyncio.sleep(after)
    for other in others:
        other.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.sleep(0)
    allowed = now() + server.wait(10)
    await send(10)
    # Held back are 0.25 s, and again for each that is cancelled while it pays.
    assert allowed - TICK <= now() <= allowed + 0.75 + TICK
    assert server.refused == 0


# A refusal


@pytest.mark.virtual_time
async def test_refusal_pauses_all_for_the_servers_wait() -> None:
    limiter = a_limiter(rpm=600)
    await limiter.acquire(1)
    assert limiter.refused(8, tokens=1) == 10  # and a quarter, by the longest jitter
    assert await sent(limiter, 1, 1, 1) == at(10, 10.1, 10.2)  # they leave spread out


@pytest.mark.virtual_time
async def test_pause_is_at_most_a_quarter_longer() -> None:
    pauses = [RateLimiter(Limits(), Random(seed)).refused(8, 1) for seed in range(200)]
    assert 8 <= min(pauses) < 8.1
    assert 9.9 < max(pauses) <= 10


@pytest.mark.virtual_time
async def test_of_two_pauses_the_longer_one_counts() -> None:
    limiter = a_limiter(rpm=600)
    limiter.refused(8, tokens=1)
    limiter.refused(4, tokens=1)
    assert await sent(limiter, 1) == at(10)


@pytest.mark.virtual_time
async def test_refusal_stops_the_head_of_the_line() -> None:
    limiter = a_limiter(rpm=60, request_burst=10)
    await sent(limiter, *[1] * 9)
    asyncio.get_running_loop().call_later(0.1, limiter.refused, 8, 1)
    assert await sent(limiter, 1, 1) == at(10.1, 11.1)


@pytest.mark.virtual_time
async def test_refusal_during_the_spread_pauses_again() -> None:
    limiter = a_limiter(concurrency=4)
    limiter.refused(8, tokens=1)
    asyncio.get_running_loop().call_later(10.2, limiter.refused, 8, 1)
    assert await sent(limiter, 1, 1) == at(10, 20.2)


@pytest.mark.virtual_time
async def test_requests_spread_after_a_pause_without_a_rate() -> None:
    limiter = a_limiter(concurrency=4)
    limiter.refused(8, tokens=1)
    assert await sent(limiter, *[1] * 6) == at(10, 10.5, 11, 11.5, 11.5, 11.5)


@pytest.mark.virtual_time
async def test_refused_requests_go_first_in_their_own_order() -> None:
    limiter, order = a_limiter(rpm=60, request_burst=10), list[str]()

    async def send(name: str) -> None:
        await limiter.acquire(1, first=name.startswith("refused"))
        order.append(name)

    limiter.refused(4, tokens=1)
    names = ["a", "b", "refused 1", "refused 2", "c"]
    await asyncio.gather(*map(send, names))
    assert order == ["refused 1", "refused 2", "a", "b", "c"]
    assert now() == pytest.approx(5 + 4, abs=TICK)


@pytest.mark.virtual_time
async def test_refused_request_overtakes_a_large_one() -> None:
    limiter = a_limiter(tpm=60, token_burst=100)
    await limiter.acquire(99)
    large = asyncio.create_task(sent(limiter, 95))
    await asyncio.sleep(1)
    limiter.reconcile(99, used=89)
    limiter.refused(4, tokens=10)
    assert await sent(limiter, 10, first=True) == at(5)
    assert await large == at(6 + 95)


@pytest.mark.virtual_time
async def test_cancelled_head_of_the_line_lets_others_go() -> None:
    """In the very moment in which the next one is woken: it must not spin for ever."""
    limiter = a_limiter(rpm=600)
    limiter.refused(4, tokens=1)
    other = asyncio.create_task(sent(limiter, 1))
    await asyncio.sleep(1)
    first = asyncio.create_task(limiter.acquire(1, first=True))
    asyncio.get_running_loop().call_at(5, first.cancel)
    assert await other == at(5)


# What the server says is left


@pytest.mark.virtual_time
async def test_what_others_have_spent_is_known_from_the_answers() -> None:
    """Somebody else takes half of the rate: nothing is refused after the first news."""
    limits = {"rpm": 600, "request_burst": 10}
    server = LimitedServer(**limits)

    async def others() -> None:
        while True:
            await server.ask("1")
            await asyncio.sleep(0.25)

    spender = asyncio.create_task(others())
    async with Team(server.ask, Limits(concurrency=3, **limits)) as team:  # type: ignore[arg-type]
        async for outcome in team.run(["1"] * 200):
            assert outcome.answer
    spender.cancel()
    assert server.refused <= 3


@pytest.mark.virtual_time
@pytest.mark.parametrize("left", [Remaining(requests=0), Remaining(tokens=0)])
async def test_nothing_left_at_the_server_is_nothing_left_here(left: Remaining) -> None:
    sent_at = list[float]()

    async def ask(question: str) -> Answer:
        sent_at.append(now())
        return Answer("Yes.", 10, 0, left if len(sent_at) == 1 else Remaining())

    limits = Limits(concurrency=1, rpm=60, request_burst=9, tpm=600, token_burst=90)
    async with Team(ask, limits, estimate=lambda _: 10) as team:
        async for _ in team.run(["a", "b", "c"]):
            pass
    assert sent_at == at(0, 1, 2)


@pytest.mark.virtual_time
async def test_headers_correct_the_level_of_this_moment() -> None:
    limiter = a_limiter(rpm=600, request_burst=10)
    await sent(limiter, *[1] * 9)
    await asyncio.sleep(0.8)
    await limiter.update_from_headers(Remaining(requests=0))
    assert await sent(limiter, 1) == at(0.1)


@pytest.mark.virtual_time
async def test_headers_of_a_failure_count_too() -> None:
    sent_at = list[float]()

    async def ask(question: str) -> Answer:
        sent_at.append(now())
        if len(sent_at) == 1:
            raise StatusError(500, remaining=Remaining(requests=0))
        return Answer("Yes.")

    async with Team(ask, Limits(rpm=60, request_burst=9, backoff=0)) as team:
        await team.ask("a")
    assert sent_at == at(0, 1)


@pytest.mark.virtual_time
async def test_tokens_that_an_answer_did_not_use_are_refunded() -> None:
    sent_at = list[float]()

    async def ask(question: str) -> Answer:
        sent_at.append(now())
        return Answer("Yes.", 9, 1)

    async with Team(
        ask, Limits(tpm=60, token_burst=100), estimate=lambda _: 90
    ) as team:
        await team.ask("a")
        await team.ask("b")
    assert sent_at == at(0, 0.25)


@pytest.mark.virtual_time
async def test_waiting_request_sees_headers() -> None:
    """Half of what a large request has waited for is spent by somebody else."""
    limits = {"tpm": 600, "token_burst": 100}
    server = LimitedServer(**limits)

    async def ask(question: str) -> Answer:
        answer = await server.ask(question)
        if question == "1 look":
            await asyncio.sleep(5)
            await server.ask("50 of somebody else")
            answer = Answer("Yes.", 1, 0, server.remaining())
        return answer

    async with Team(ask, Limits(**limits), estimate=tokens_of) as team:  # type: ignore[arg-type]
        questions = ["90 a", "1 look", "80 b"]
        outcomes = [outcome async for outcome in team.run(questions, in_order=True)]
    assert [outcome.requests for outcome in outcomes] == [1, 1, 1]
    assert server.refused == 0
