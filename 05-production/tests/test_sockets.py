"""A team and a real server in trouble: the server's counts say what was lost."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest
from openai import AsyncOpenAI, DefaultAioHttpClient, DefaultAsyncHttpxClient

from agents import Event, Limits, Outcome, Summary, Team, all_of, openai_ask
from racelab import Fault, Settings
from racelab.pytest.wait_until import until
from racelab.server import serve

QUESTIONS = [f"Question {number}?" for number in range(150)]
# Nothing is final here: what is lost, the team has lost.
STUBBORN: dict[str, Any] = {"tries": 20, "backoff": 0.01, "free_retries": 1000}
PROFILES = {
    "errors": (Fault("500", 0.1), Fault("503", 0.1, retry_after=0.01)),
    "broken": (Fault("reset", 0.1), Fault("cut", 0.1), Fault("malformed", 0.1)),
    "storm": (Fault("429", 0.3, retry_after=0.01),),
    "slow": (Fault("slow", 0.05),),
}


@pytest.fixture(params=[DefaultAsyncHttpxClient, DefaultAioHttpClient])
def transport(request: pytest.FixtureRequest) -> Any:
    return request.param


def client_of(base_url: str, transport: Any = DefaultAioHttpClient) -> AsyncOpenAI:
    http = transport(verify=False, trust_env=False)
    return AsyncOpenAI(base_url=base_url, api_key="any", http_client=http)


async def answers(team: Team) -> dict[str, Outcome]:
    return {outcome.question: outcome async for outcome in team.run(QUESTIONS)}


def are_complete(outcomes: dict[str, Outcome]) -> bool:
    return set(outcomes) == set(QUESTIONS) and all(
        outcome.answer and question in outcome.text
        for question, outcome in outcomes.items()
    )


@pytest.mark.parametrize("profile", PROFILES)
async def test_no_fault_loses_an_answer_or_pays_twice(profile: str) -> None:
    limits = Limits(concurrency=15, **STUBBORN)
    settings = Settings(latency=0.005, faults=PROFILES[profile])
    before = asyncio.all_tasks()
    async with serve(settings) as server:
        async with (
            client_of(server.base_url) as client,
            Team(openai_ask(client, "any", limits), limits) as team,
        ):
            outcomes = await answers(team)
        stats = await until(server, connections_open=0)
    assert asyncio.all_tasks() == before
    assert are_complete(outcomes)
    assert set(stats.faults) == {fault.kind for fault in PROFILES[profile]}
    assert dict(stats.answers) == dict.fromkeys(QUESTIONS, 1)
    assert stats.received == sum(outcome.requests for outcome in outcomes.values())
    assert stats.largest_in_flight <= limits.concurrency


async def test_a_call_that_hangs_is_asked_again() -> None:
    limits = Limits(concurrency=15, timeout=0.5, **STUBBORN)
    settings = Settings(latency=0.005, faults=(Fault("hang", calls=(3, 60, 140)),))
    async with (
        serve(settings) as server,
        client_of(server.base_url) as client,
        Team(openai_ask(client, "any", limits), limits) as team,
    ):
        outcomes = await answers(team)
        stats = await until(server, in_flight=0)
    assert are_complete(outcomes)
    assert stats.faults == {"hang": 3}


async def test_server_restart_loses_nothing(
    transport: Any,
) -> None:
    limits = Limits(concurrency=15, **STUBBORN)
    settings = Settings(latency=0.005)
    is_under_way, is_missed = asyncio.Event(), asyncio.Event()
    summary = Summary()

    def look(event: Event) -> None:
        if summary["answered"] == 50:
            is_under_way.set()
        if event.kind == "retried":
            is_missed.set()

    async with AsyncExitStack() as stack:
        async with serve(settings) as first:
            client = await stack.enter_async_context(
                client_of(first.base_url, transport)
            )
            ask, observer = openai_ask(client, "any", limits), all_of(summary, look)
            team = Team(ask, limits, observer=observer)
            await stack.enter_async_context(team)
            running = asyncio.create_task(answers(team))
            await is_under_way.wait()
        await is_missed.wait()
        async with serve(settings, first.port) as second:
            outcomes = await running
    assert are_complete(outcomes)
    assert first.stats().answered >= 50
    assert second.stats().answered >= len(QUESTIONS) - first.stats().answered
    sent = sum(outcome.requests for outcome in outcomes.values())
    assert first.stats().received + second.stats().received <= sent


@pytest.mark.long
@pytest.mark.parametrize(
    "limit",
    [
        {"rpm": 9000, "request_burst": 20},
        {"tpm": 180_000, "token_burst": 1000},
    ],
    ids=["requests", "tokens"],
)
async def test_under_a_rate_limit_nothing_is_refused(limit: dict[str, float]) -> None:
    limits = Limits(concurrency=15, answer_tokens=100, **limit)
    settings = Settings(latency=0.02, **limit)  # type: ignore[arg-type]
    async with (
        serve(settings) as server,
        client_of(server.base_url) as client,
        Team(openai_ask(client, "any", limits), limits) as team,
    ):
        outcomes = await answers(team)
        stats = server.stats()
    assert are_complete(outcomes)
    assert stats.refused == {}
    assert stats.received == len(QUESTIONS)
