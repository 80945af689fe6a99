"""One call and its limits: retries, rates, pauses, deadlines.

Why each pair breaks and holds: by what the server counts, or in virtual time, where
times are exact.
"""

import asyncio
from random import Random
from types import ModuleType

import openai
import pytest
from aiolimiter import AsyncLimiter
from httpx2 import Request, Response

from racelab import Fault, LocalServer, Settings
from racelab.explore import clock
from racelab.pytest.run_scripts import LoadScript
from racelab.server.buckets import KeyLimits
from racelab.server.errors import ApiError

REQUEST = Request("POST", "http://api")


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK's own pauses between two tries: a hundredth."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.005)


# retry_multiplied


@pytest.mark.parametrize("ours", [1, 2, 3])
@pytest.mark.parametrize("sdk", [0, 1, 2])
async def test_tries_around_tries_are_multiplied(
    ours: int,
    sdk: int,
    load_script: LoadScript,
    model_server: LocalServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So fewer tries of ours are no fix: two are still six requests."""
    module = load_script("broken_retry_multiplied.py")
    monkeypatch.setattr(module, "TRIES", ours)
    monkeypatch.setattr(module, "PAUSE", 0)
    down = Fault("503", probability=1, retry_after=0.001)
    model_server.reset(Settings(faults=(down,)))
    async with module.openai_client(model_server) as client:
        ask = client.with_options(max_retries=sdk)
        assert await module.insist("Why?", lambda q: module.ask_model(ask, q)) == ours
    assert model_server.stats().received == ours * (1 + sdk)


# semaphore_is_not_a_rate


class Account:
    """The local server's own limit, in virtual time; `latency` may change."""

    def __init__(self, module: ModuleType, latency: float) -> None:
        self.latency, self.refused = latency, 0
        settings = Settings(rpm=module.RPM, request_burst=module.BURST)
        self.limits = KeyLimits(settings, now=0)

    async def ask(self, question: str) -> str:
        try:
            self.limits.admit(1, "any", asyncio.get_running_loop().time())
        except ApiError:
            self.refused += 1
            response = Response(429, request=REQUEST)
            raise openai.RateLimitError("429", response=response, body=None) from None
        await asyncio.sleep(self.latency)
        return "Yes."


def refusals(module: ModuleType, latency: float) -> int:
    account = Account(module, latency)
    fates = clock.run(module.run(account.ask))
    assert fates.total() == module.QUESTIONS
    assert fates["refused"] == account.refused
    return account.refused


def test_semaphore_keeps_the_limit_only_with_slow_answers(
    load_script: LoadScript,
) -> None:
    module = load_script("broken_semaphore_is_not_a_rate.py")
    refused = [refusals(module, latency) for latency in (0.02, 0.2, 1.0)]
    assert refused == [6, 5, 0]  # five slots and 1 s an answer: five a second


@pytest.mark.parametrize(
    "name", ["fixed_semaphore_is_not_a_rate.py", "solutions/rate_by_hand.py"]
)
def test_pace_keeps_the_limit_at_any_latency(
    name: str, load_script: LoadScript, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load_script(name)
    monkeypatch.setattr(module, "QUESTIONS", 100)
    for latency in (0.0, 0.02, 1.0, 10.0):
        assert refusals(module, latency) == 0


def test_large_bucket_sends_all_at_once(
    load_script: LoadScript, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tempting worse fix: `AsyncLimiter(RPM, 60)`."""
    module = load_script("fixed_semaphore_is_not_a_rate.py")
    monkeypatch.setattr(module, "AsyncLimiter", lambda *_: AsyncLimiter(module.RPM, 60))
    assert refusals(module, 0.02) == 6


@pytest.mark.parametrize(("pace_first", "refused"), [(True, 4), (False, 0)])
def test_pace_outside_the_slot_paces_nothing(
    pace_first: bool, refused: int, load_script: LoadScript
) -> None:
    """All are let out of the bucket in time, wait for a slot, and then go together."""
    module = load_script("fixed_semaphore_is_not_a_rate.py")

    async def run(account: Account) -> None:
        slots, pace = asyncio.Semaphore(module.SLOTS), AsyncLimiter(3, 0.6)

        async def ask(number: int) -> None:
            outer, inner = (pace, slots) if pace_first else (slots, pace)
            async with outer, inner:
                account.latency = 5 if number < module.SLOTS else 0
                await asyncio.gather(account.ask("Why?"), return_exceptions=True)

        await asyncio.gather(*map(ask, range(15)))

    account = Account(module, 0)
    clock.run(run(account))
    assert account.refused == refused


# retry_herd


def crowd(module: ModuleType, seed: int) -> int:
    api = module.Api()
    answers = clock.run(module.run(api.ask, Random(seed)))
    after = [moment for moment in api.arrivals if moment >= module.OPENS]
    assert answers == ["Yes."] * module.AGENTS
    assert len(after) == len(api.arrivals) - len(after) == module.AGENTS  # none early
    return int(module.largest_crowd(after))


def test_without_jitter_all_agents_return_at_once(
    load_script: LoadScript,
) -> None:
    module = load_script("broken_retry_herd.py")
    assert {crowd(module, seed) for seed in range(50)} == {module.AGENTS}


def test_with_jitter_no_seed_makes_a_crowd(load_script: LoadScript) -> None:
    module = load_script("fixed_retry_herd.py")
    assert max(crowd(module, seed) for seed in range(100)) <= module.ROOM


@pytest.mark.parametrize(("fault", "different"), [("429", False), ("500", True)])
async def test_sdk_adds_no_jitter_to_a_named_time(
    fault: str,
    different: bool,
    model_server: LocalServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr("anyio.sleep", sleep)
    down = Fault(fault, probability=1, retry_after=1.5)
    model_server.reset(Settings(faults=(down,)))
    async with openai.AsyncOpenAI(
        base_url=model_server.base_url, api_key="any", max_retries=1
    ) as client:
        for _ in range(5):
            with pytest.raises(openai.APIStatusError):
                await client.chat.completions.create(
                    model="any", messages=[{"role": "user", "content": "Why?"}]
                )
    assert len(pauses) == 5
    assert (len(set(pauses)) > 1) == different
    assert different or pauses[0] == 1.5


# timeout


@pytest.mark.usefixtures("short_pauses")
@pytest.mark.parametrize("max_retries", [0, 1])
async def test_a_timeout_is_for_each_try(
    max_retries: int, load_script: LoadScript, model_server: LocalServer
) -> None:
    module = load_script("broken_timeout.py")
    model_server.reset(Settings(faults=(module.SILENCE,)))
    async with module.openai_client(model_server) as client:
        await client.with_options(timeout=60).models.list()
        ask = client.with_options(max_retries=max_retries)
        fate, _ = await module.run(lambda q: module.ask_model(ask, q))
    assert fate == "APITimeoutError"
    assert model_server.stats().received == max_retries + 1


async def tries_that_time_out(question: str) -> str:
    """As the SDK does, in virtual time: three tries and two pauses."""
    for pause in (0.5, 1.0, 0.0):
        await asyncio.sleep(0.25 + pause)
    raise openai.APITimeoutError(request=REQUEST)


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("broken_timeout.py", ("APITimeoutError", 2.25)),
        ("fixed_timeout.py", ("TimeoutError", 0.25)),
    ],
)
def test_a_deadline_is_for_all_tries_and_pauses(
    name: str, end: tuple[str, float], load_script: LoadScript
) -> None:
    assert clock.run(load_script(name).run(tries_that_time_out)) == end


async def test_without_retries_a_timeout_is_still_no_deadline(
    model_server: LocalServer,
) -> None:
    """The tempting worse fix: `max_retries=0` alone. Each chunk starts it anew."""
    timeout, delay = 1.0, 0.02
    model_server.reset(Settings(latency=0, chunk_delay=delay))
    async with openai.AsyncOpenAI(
        base_url=model_server.base_url, api_key="any", max_retries=0, timeout=timeout
    ) as client:
        stream = await client.chat.completions.create(
            model="any",
            messages=[{"role": "user", "content": "Why? " * 50}],
            stream=True,
        )
        chunks = [chunk async for chunk in stream]
    assert (len(chunks) - 1) * delay > timeout  # and nothing was raised


def test_none_is_no_timeout_at_all() -> None:
    assert openai.AsyncOpenAI(api_key="none", timeout=None).timeout is None
