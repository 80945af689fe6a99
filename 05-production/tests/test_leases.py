"""The limiter and its leases, in virtual time: no Ray, no server."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from random import Random
from typing import Any

import pytest

from agents import Answer, Limits, Remaining, StatusError, Team, TooLarge
from beyond_one_machine import simulate_leases
from beyond_one_machine.leases import (
    LEASE_EXPIRY,
    LEASE_EXPIRY_MARGIN,
    Lease,
    LeasedRateLimiter,
    LeaseRequest,
    Limiter,
)
from racelab.server.buckets import TokenBucket

pytestmark = pytest.mark.virtual_time
RATE = 20  # requests a second, of all workers
LIMITS = Limits(rpm=60 * RATE, request_burst=RATE, concurrency=30, deadline=1e6)


def now() -> float:
    return asyncio.get_running_loop().time()


class SharedAccount:
    """The provider's side: refuses what is above the limits; notes who sent when."""

    def __init__(self, limits: Limits, latency: float = 0.3) -> None:
        self.buckets = {
            "requests": TokenBucket(limits.rpm or 1e12, limits.request_burst, now()),
            "tokens": TokenBucket(limits.tpm or 1e12, limits.token_burst, now()),
        }
        self.latency = latency
        self.sent: list[tuple[float, str]] = []  # when, by which worker
        self.refused: list[float] = []
        self.storm_until = 0.0

    def admit(self, worker: str, tokens: float) -> None:
        self.sent.append((now(), worker))
        costs = {"requests": 1.0, "tokens": tokens}
        for bucket in self.buckets.values():
            bucket.refill(now())
        waits = [bucket.wait(costs[kind]) for kind, bucket in self.buckets.items()]
        if any(waits) or now() < self.storm_until:
            self.refused.append(now())
            wait = max(self.storm_until - now(), *waits)
            raise StatusError(429, "slow down", retry_after=wait)
        for kind, bucket in self.buckets.items():
            bucket.take(costs[kind])

    def ask_of(self, worker: str, tokens: float = 0) -> Callable[[str], Any]:
        async def ask(question: str) -> Answer:
            self.admit(worker, tokens)
            await asyncio.sleep(self.latency)
            return Answer("yes", int(tokens), 0)

        return ask

    def most_within(self, seconds: float) -> int:
        times = [at for at, _ in self.sent]
        return max(sum(at <= each < at + seconds for each in times) for at in times)


class FakeRemoteLimiter:
    """A limiter behind a network, which is slow, and that can be killed."""

    def __init__(self, limits: Limits = LIMITS, delay: float = 0.01) -> None:
        self.limits, self.delay = limits, delay
        self.lease_takes = 0.0  # so much longer to get there
        self.limiter = Limiter(limits)
        self.calls = 0
        self._killed = asyncio.Event()

    def restart(self) -> None:
        self.limiter = Limiter(self.limits, restarted=True)
        self._killed.set()
        self._killed = asyncio.Event()

    async def lease(self, request: LeaseRequest) -> Lease:
        self.calls += 1
        takes = self.lease_takes
        lease = await self._call(lambda limiter: limiter.lease(request))
        await asyncio.sleep(takes)
        return lease

    async def used_up(self, worker: str, number: int) -> None:
        self.calls += 1
        await self._call(lambda limiter: limiter.used_up(worker, number))

    async def refused(self, wait: float, tokens: float) -> int:
        return await self._call(lambda limiter: limiter.refused(wait, tokens))

    async def news(self, seen: int) -> tuple[int, float]:
        return await self._call(lambda limiter: limiter.news(seen))

    async def _call(self, call: Callable[[Limiter], Awaitable[Any]]) -> Any:
        """Repeated, if the limiter does not survive it, as Ray does."""
        await asyncio.sleep(self.delay)
        while True:
            answer = asyncio.ensure_future(call(self.limiter))
            killed = asyncio.ensure_future(self._killed.wait())
            try:
                await asyncio.wait({answer, killed}, return_when="FIRST_COMPLETED")
                if answer.done():
                    await asyncio.sleep(self.delay)
                    return answer.result()
            finally:
                answer.cancel()
                killed.cancel()


@asynccontextmanager
async def team(
    remote: FakeRemoteLimiter,
    account: SharedAccount,
    worker: str,
    tokens: float = 0,
    **more: Any,
):
    rate_limiter = LeasedRateLimiter(
        remote.limits, remote, worker, rng=Random(1), **more
    )
    ask = account.ask_of(worker, tokens)
    async with (
        rate_limiter,
        Team(
            ask, remote.limits, rate_limiter=rate_limiter, estimate=lambda _: tokens
        ) as team,
    ):
        yield team


def questions(worker: str, count: int) -> Iterator[str]:
    return (f"{worker} {number}" for number in range(count))


async def work(
    remote: FakeRemoteLimiter,
    account: SharedAccount,
    worker: str,
    count: int,
    **more: Any,
) -> list[str]:
    """What a worker answered of so many questions."""
    async with team(remote, account, worker, **more) as its:
        outcomes = [each async for each in its.run(questions(worker, count))]
    return [outcome.question for outcome in outcomes if outcome.answer]


async def work_all(
    remote: FakeRemoteLimiter, account: SharedAccount, workers: int, count: int
) -> float:
    """So many workers answer as many questions each: all. Gives the seconds."""
    names = [f"w{number}" for number in range(workers)]
    answered = await asyncio.gather(
        *(work(remote, account, name, count) for name in names)
    )
    assert [len(each) for each in answered] == [count] * workers
    return now()


@pytest.mark.parametrize("workers", [1, 2, 7, 40])
@pytest.mark.parametrize("delay", [0.0, 0.02])
async def test_all_workers_together_use_exactly_the_limit(
    workers: int, delay: float
) -> None:
    remote, account = FakeRemoteLimiter(delay=delay), SharedAccount(LIMITS)
    count = 1200 // workers
    seconds = await work_all(remote, account, workers, count)
    assert account.refused == []
    assert seconds <= 1.05 * count * workers / RATE + 1


async def test_tokens_keep_to_their_limit_too() -> None:
    limits = Limits(tpm=60_000, token_burst=1_000, concurrency=30, deadline=1e6)
    remote, account = FakeRemoteLimiter(limits), SharedAccount(limits)
    small, large = await asyncio.gather(
        work(remote, account, "small", 200, tokens=50),
        work(remote, account, "large", 20, tokens=990),
    )
    assert (len(small), len(large)) == (200, 20)
    assert account.refused == []
    assert now() <= 1.05 * (200 * 50 + 20 * 990) / 1_000 + 1


async def test_tokens_that_were_not_used_are_leased_again() -> None:
    limits = Limits(tpm=60_000, token_burst=1_000, concurrency=10, deadline=1e6)
    remote, account = FakeRemoteLimiter(limits), SharedAccount(limits, latency=0.5)

    async def ask(question: str) -> Answer:
        return await account.ask_of("w", 20)(question)

    async with (
        LeasedRateLimiter(limits, remote, "w") as rate_limiter,
        Team(ask, limits, rate_limiter=rate_limiter, estimate=lambda _: 200) as team,
    ):
        async for outcome in team.run(questions("w", 100)):
            assert outcome.answer
    assert account.refused == []
    assert now() < 12  # with what was reserved, 100 * 200 / 1,000 seconds


async def test_tokens_beyond_the_estimate_come_from_the_next_lease() -> None:
    limits = Limits(tpm=60_000, token_burst=1_000, concurrency=1, deadline=1e6)
    remote = FakeRemoteLimiter(limits)
    async with LeasedRateLimiter(limits, remote, "w", batch=1) as rate_limiter:
        await rate_limiter.acquire(100)
        rate_limiter.reconcile(100, 900)
        begun = now()
        await rate_limiter.acquire(100)
    assert now() - begun >= 0.8


async def test_the_limiter_is_not_asked_for_each_call() -> None:
    remote, account = FakeRemoteLimiter(), SharedAccount(LIMITS)
    await work_all(remote, account, 4, 300)
    assert len(account.sent) == 1200
    assert remote.calls <= 1200 / 10 * 1.3


async def test_single_calls_share_leases_too() -> None:
    limits = Limits(rpm=60_000, concurrency=1, deadline=1e6)
    remote, account = FakeRemoteLimiter(limits), SharedAccount(limits, latency=0.02)
    await work(remote, account, "w", 300)
    assert remote.calls <= 300 / 10 * 1.5


async def test_idle_leases_do_not_add_up_to_a_burst() -> None:
    """Two have asked for one call, and have been given more, as there was plenty."""
    remote, account = FakeRemoteLimiter(delay=0.0), SharedAccount(LIMITS)

    async def send(rate_limiter: LeasedRateLimiter, calls: int) -> None:
        for _ in range(calls):
            await rate_limiter.acquire(0)
            with suppress(StatusError):
                account.admit("w", 0)

    async with AsyncExitStack() as stack:
        rate_limiters = [
            LeasedRateLimiter(LIMITS, remote, f"w{number}") for number in range(3)
        ]
        for rate_limiter in rate_limiters:
            await stack.enter_async_context(rate_limiter)
        await send(rate_limiters[2], 1)
        await asyncio.sleep(30)
        for rate_limiter in rate_limiters[:2]:
            await send(rate_limiter, 1)
            await asyncio.sleep(0.45)
        await asyncio.gather(
            *(send(rate_limiter, RATE) for rate_limiter in rate_limiters)
        )
    assert account.refused == []


async def test_low_rate_grants_less_than_a_batch() -> None:
    limits = Limits(rpm=60, request_burst=60, concurrency=10, deadline=1e6)
    remote, account = FakeRemoteLimiter(limits), SharedAccount(limits)
    await work(remote, account, "w", 10)
    assert [round(at) for at, _ in account.sent] == list(range(1, 11))


async def test_lease_of_a_dead_worker_is_written_off() -> None:
    limits = Limits(rpm=60 * RATE, request_burst=2, concurrency=5)
    limiter = Limiter(limits)
    await limiter.lease(LeaseRequest("dead", 1, (0.0,)))
    begun = now()
    granted = 0
    for number in range(1, 21):
        granted += (await limiter.lease(LeaseRequest("alive", number, (0.0,)))).requests
    assert granted == 20
    assert now() - begun <= LEASE_EXPIRY + LEASE_EXPIRY_MARGIN + 20 / RATE


async def test_finished_worker_releases_its_lease() -> None:
    """It says that its lease is used up; else it would count until it is void."""
    remote, account = FakeRemoteLimiter(delay=0.0), SharedAccount(LIMITS)
    for number in range(30):
        await work(remote, account, f"w{number}", 10)
    ended = now()
    assert account.refused == []
    assert ended <= 30 * (10 / RATE + account.latency + 0.1)


async def test_late_release_does_not_free_a_newer_lease() -> None:
    limiter = Limiter(Limits(rpm=60, request_burst=1))
    await limiter.lease(LeaseRequest("w", 1, (0.0,)))
    await limiter.lease(LeaseRequest("w", 2, (0.0,)))
    begun = now()
    await limiter.used_up("w", 1)
    await limiter.lease(LeaseRequest("other", 1, (0.0,)))
    assert now() - begun >= LEASE_EXPIRY + LEASE_EXPIRY_MARGIN


async def test_a_lease_is_void_after_a_while() -> None:
    remote = FakeRemoteLimiter(delay=0.0)
    async with LeasedRateLimiter(LIMITS, remote, "w") as rate_limiter:
        await rate_limiter.acquire(0)
        await asyncio.sleep(5)
        await rate_limiter.acquire(0)  # with plenty: more than one is leased
        asked = remote.calls
        await rate_limiter.acquire(0)
        assert remote.calls == asked
        await asyncio.sleep(LEASE_EXPIRY)
        await rate_limiter.acquire(0)
        assert remote.calls == asked + 1


async def test_a_limiter_that_starts_lets_no_burst_through() -> None:
    remote, account = FakeRemoteLimiter(delay=0.0), SharedAccount(LIMITS)
    async with team(remote, account, "w") as its:
        async for _ in its.run(questions("w", 40)):
            pass
    assert account.most_within(0.999) <= RATE


@pytest.mark.parametrize("at", [0.5, 1.0, 1.73, 2.0, 3.3])
async def test_a_limiter_that_is_restarted_lets_no_burst_through(at: float) -> None:
    remote, account = FakeRemoteLimiter(), SharedAccount(LIMITS)
    asyncio.get_running_loop().call_later(at, remote.restart)
    await work_all(remote, account, 5, 40)
    assert account.refused == []
    assert account.most_within(1) <= RATE + 10


async def test_a_restarted_limiter_waits_until_old_leases_are_void() -> None:
    limiter = Limiter(LIMITS, restarted=True)
    await limiter.lease(LeaseRequest("w", 1, (0.0,)))
    assert now() >= LEASE_EXPIRY + LEASE_EXPIRY_MARGIN


async def test_restarted_limiter_learns_of_a_pause() -> None:
    limiter = Limiter(LIMITS, restarted=True)
    await limiter.lease(LeaseRequest("w", 1, (0.0,), pauses=3, pause=60))
    assert now() >= 60
    assert await limiter.refused(0, 0) == 4


async def test_a_429_seen_by_one_worker_pauses_all() -> None:
    remote, account = FakeRemoteLimiter(), SharedAccount(LIMITS)
    storm = (5.0, 9.0)

    def begin() -> None:
        account.storm_until = storm[1]

    asyncio.get_running_loop().call_later(storm[0], begin)
    await work_all(remote, account, 5, 60)
    # Those on their way when the first one came back, and no more.
    assert 1 <= len(account.refused) <= 10
    heard = account.refused[0] + 4 * remote.delay
    assert [at for at, _ in account.sent if heard < at < storm[1]] == []
    assert account.refused[-1] < heard


async def test_workers_resume_at_the_rate_after_a_pause() -> None:
    remote, account = FakeRemoteLimiter(), SharedAccount(LIMITS)
    async with LeasedRateLimiter(LIMITS, remote, "who sees it") as rate_limiter:
        await rate_limiter.acquire(0)
        open_at = now() + rate_limiter.refused(5, 0)
        await work_all(remote, account, 5, 40)
    times = [at for at, _ in account.sent]
    assert min(times) >= open_at - 1e-6
    assert sum(at < open_at + 1 for at in times) <= RATE + 1


async def test_refusal_voids_the_leases_of_idle_workers() -> None:
    remote = FakeRemoteLimiter()
    async with (
        LeasedRateLimiter(LIMITS, remote, "a") as a,
        LeasedRateLimiter(LIMITS, remote, "b") as b,
    ):
        await b.acquire(0)
        await asyncio.sleep(30)
        await a.acquire(0)  # with plenty: more than one is leased
        asked = remote.calls
        open_at = now() + b.refused(30, 0)
        await asyncio.sleep(0.1)
        await a.acquire(0)
    assert remote.calls > asked
    assert now() >= open_at


async def test_a_lease_from_before_a_pause_is_void() -> None:
    """It was on its way to the worker when somebody else was refused."""
    remote = FakeRemoteLimiter()
    async with LeasedRateLimiter(LIMITS, remote, "w") as rate_limiter:
        await rate_limiter.acquire(0)
        await asyncio.sleep(30)
        remote.lease_takes = 0.5
        taken, begun = asyncio.create_task(rate_limiter.acquire(0)), now()
        await asyncio.sleep(0.25)
        remote.lease_takes = 0.0  # for the next one
        await remote.limiter.refused(0.1, 0)
        for _ in range(8):
            await rate_limiter.acquire(0)
        await taken
    assert now() - begun >= 0.25 + 0.1 + 8 / RATE


async def test_what_comes_back_from_before_a_pause_is_void() -> None:
    limiter = Limiter(LIMITS)
    await limiter.lease(LeaseRequest("w", 1, (0.0,)))
    assert await limiter.refused(10, 0) == 1
    await limiter.lease(LeaseRequest("w", 2, (0.0,), requests=9.0, pauses=0))
    for number in range(3, 12):
        await limiter.lease(LeaseRequest("w", number, (0.0,), pauses=1))
    assert now() >= 10 + 9 / RATE


@pytest.mark.parametrize("turns", range(8))
async def test_cancelled_first_call_is_not_waited_for(
    turns: int,
) -> None:
    remote = FakeRemoteLimiter(delay=0.0)
    async with LeasedRateLimiter(LIMITS, remote, "w") as rate_limiter:
        head = asyncio.create_task(rate_limiter.acquire(0))
        await asyncio.sleep(0)
        first = asyncio.create_task(rate_limiter.acquire(0, first=True))
        await asyncio.sleep(1 / RATE)  # now the head has its lease
        for _ in range(turns):
            await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await head
    assert rate_limiter._first == 0


async def test_a_refused_call_goes_first() -> None:
    remote, order = FakeRemoteLimiter(), []

    async def acquire(
        rate_limiter: LeasedRateLimiter, name: str, first: bool = False
    ) -> None:
        await rate_limiter.acquire(0, first)
        order.append(name)

    async with LeasedRateLimiter(LIMITS, remote, "w") as rate_limiter:
        await rate_limiter.acquire(0)
        rate_limiter.refused(1, 0)
        async with asyncio.TaskGroup() as group:
            for number in range(15):
                group.create_task(acquire(rate_limiter, f"{number}"))
            await asyncio.sleep(0.5)
            group.create_task(acquire(rate_limiter, "refused", first=True))
    assert order[:2] == ["refused", "0"]
    assert order[1:] == [f"{number}" for number in range(15)]


async def test_workers_take_turns() -> None:
    remote, account = FakeRemoteLimiter(), SharedAccount(LIMITS)
    await work_all(remote, account, 5, 100)
    leases = [worker for worker, _ in itertools.groupby(w for _, w in account.sent)]
    for turn in range(1, 8):  # then the first ones run out of questions
        assert len(set(leases[5 * turn : 5 * turn + 5])) == 5


async def test_a_large_call_is_not_starved_by_small_ones() -> None:
    limits = Limits(tpm=6_000, token_burst=1_000, concurrency=5, deadline=1e6)
    remote, account = FakeRemoteLimiter(limits), SharedAccount(limits)
    small = asyncio.create_task(work(remote, account, "small", 500, tokens=10))
    await asyncio.sleep(5)
    await work(remote, account, "large", 1, tokens=950)
    assert now() <= 5 + 10 + 3
    assert not small.done()
    await small


async def test_a_call_that_never_fits_fails_at_once() -> None:
    limits = Limits(tpm=6_000, token_burst=1_000)
    async with LeasedRateLimiter(
        limits, FakeRemoteLimiter(limits), "w"
    ) as rate_limiter:
        with pytest.raises(TooLarge):
            rate_limiter.check(1_001)


async def test_a_report_that_comes_twice_gives_back_once() -> None:
    limits = Limits(rpm=60, request_burst=100)
    limiter = Limiter(limits)
    await limiter.lease(LeaseRequest("w", 1, (0.0,)))
    given_back = LeaseRequest("w", 2, (0.0,), requests=10.0)
    await limiter.lease(given_back)
    await limiter.lease(given_back)
    begun = now()
    for number in range(3, 3 + 9):  # of the ten, one was leased twice
        await limiter.lease(LeaseRequest("w", number, (0.0,)))
    assert now() - begun >= 1


async def test_cancelled_call_leaves_its_lease_to_the_next() -> None:
    remote = FakeRemoteLimiter()
    async with LeasedRateLimiter(LIMITS, remote, "w") as rate_limiter:
        taken = asyncio.create_task(rate_limiter.acquire(0))
        await asyncio.sleep(0.015)
        taken.cancel()
        await asyncio.gather(taken, return_exceptions=True)
        await rate_limiter.acquire(0)
    assert remote.calls == 1


async def test_what_the_server_says_is_left_corrects_the_limiter() -> None:
    """Somebody else spends from the same account."""
    remote = FakeRemoteLimiter(delay=0.0)
    async with LeasedRateLimiter(LIMITS, remote, "w", batch=1) as rate_limiter:
        await rate_limiter.acquire(0)
        await asyncio.sleep(30)
        await rate_limiter.update_from_headers(Remaining(0, None))
        begun = now()
        for _ in range(RATE):
            await rate_limiter.acquire(0)
    assert now() - begun >= (RATE - 2) / RATE


async def test_nothing_is_left_when_a_pace_ends() -> None:
    remote = FakeRemoteLimiter()
    async with LeasedRateLimiter(LIMITS, remote, "w") as rate_limiter:
        await rate_limiter.acquire(0)
        rate_limiter.refused(100, 0)
        taken = asyncio.create_task(rate_limiter.acquire(0))
        await asyncio.sleep(1)
        taken.cancel()
    await asyncio.gather(taken, return_exceptions=True)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_limiter_without_a_limit_is_an_error() -> None:
    with pytest.raises(ValueError, match="rpm or tpm"):
        Limiter(Limits())


@pytest.mark.parametrize(
    "seed",
    [*range(20), *(pytest.param(n, marks=pytest.mark.long) for n in range(20, 100))],
)
async def test_random_crashes_stay_within_the_limit_and_lose_nothing(seed: int) -> None:
    """Any workers, batches, delays; the limiter and workers die at any moment."""
    rng = Random(seed)
    limits = Limits(
        rpm=60 * RATE, request_burst=rng.choice([2, RATE]), concurrency=8, deadline=1e6
    )
    remote = FakeRemoteLimiter(limits, delay=rng.choice([0.0, 0.005, 0.05]))
    account = SharedAccount(limits, latency=rng.uniform(0, 1))
    loop = asyncio.get_running_loop()
    for _ in range(rng.randrange(3)):
        loop.call_later(rng.uniform(0, 8), remote.restart)

    async def dies(name: str, count: int, batch: int, after: float | None) -> list[str]:
        try:
            async with asyncio.timeout(after):
                return await work(remote, account, name, count, batch=batch)
        except TimeoutError:
            return await work(remote, account, f"{name} again", count, batch=batch)

    counts = [rng.randrange(1, 60) for _ in range(rng.randrange(1, 6))]
    answered = await asyncio.gather(
        *(
            dies(f"w{n}", count, rng.randrange(1, 15), rng.choice([None, 1.3]))
            for n, count in enumerate(counts)
        )
    )
    assert [len(each) for each in answered] == counts
    assert account.refused == []


@pytest.mark.long
async def test_the_table_of_the_readme(monkeypatch: pytest.MonkeyPatch) -> None:
    """Larger leases: fewer messages, and less fair; never above the limit."""
    monkeypatch.setattr(simulate_leases, "SECONDS", 20)
    small, large = await simulate_leases.work(1), await simulate_leases.work(20)
    assert small.refused == large.refused == 0
    assert small.asked >= 15 * large.asked
    assert min(small.calls_of_each()) > min(large.calls_of_each())
