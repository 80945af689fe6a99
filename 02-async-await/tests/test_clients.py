"""What may share a client, and what the server sees of it."""

import asyncio
import gc
import sys
from collections.abc import Callable, Iterator

import pytest
from openai import AsyncOpenAI, Timeout

from racelab import Ask, LocalServer
from racelab.fakes import CountedAsk, fake_ask
from racelab.pytest.run_scripts import LoadScript


@pytest.fixture
def collect() -> Iterator[None]:
    yield
    gc.collect()  # what is left open is found now, not within another test


def leaves_sockets_open(test: Callable[..., None]) -> Callable[..., None]:
    """For tests of code whose lesson it is that nobody closes its sockets."""
    ignore = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
    return pytest.mark.usefixtures("collect")(ignore(test))


def new_client(server: LocalServer, max_retries: int = 0) -> AsyncOpenAI:
    url, key = server.base_url, server.api_key
    return AsyncOpenAI(base_url=url, api_key=key, max_retries=max_retries)


async def ask(client: AsyncOpenAI, question: str) -> str:
    completion = await client.chat.completions.create(
        model="gpt-5.4-mini", messages=[{"role": "user", "content": question}]
    )
    return completion.choices[0].message.content or ""


def opened(server: LocalServer) -> int:
    return server.stats().connections_opened


@leaves_sockets_open
def test_closed_client_per_call_still_connects_per_call(
    model_server: LocalServer,
) -> None:
    """The tempting worse fix: with `async with` nothing leaks, and nothing is saved."""

    async def calls() -> None:
        for topic in range(5):
            async with new_client(model_server) as client:
                await ask(client, f"{topic}")

    asyncio.run(calls())
    assert opened(model_server) == 5


@leaves_sockets_open
@pytest.mark.skipif(sys.platform == "win32", reason="its loop fails before it sends")
@pytest.mark.parametrize("max_retries", [0, 2])
def test_client_from_a_closed_loop_loses_every_second_answer(
    max_retries: int, load_script: LoadScript, model_server: LocalServer
) -> None:
    """Also with the SDK's retries, which are for errors of the transport only."""
    module = load_script("broken_closed_loop.py")
    answers, lost = module.run(new_client(model_server, max_retries))
    assert (list(answers), lost) == (
        ["price", "name", "risks"],
        {"date": "Event loop is closed", "rivals": "Event loop is closed"},
    )
    assert model_server.stats().received == 5  # the lost ones were sent, too


def test_one_loop_gets_every_answer_on_one_connection(
    load_script: LoadScript, model_server: LocalServer
) -> None:
    module = load_script("fixed_closed_loop.py")
    answers, lost = module.run(new_client(model_server))
    assert (list(answers), lost) == (list(module.TOPICS), {})
    assert opened(model_server) == 1


def test_plain_timeout_also_limits_the_wait_for_connections() -> None:
    assert Timeout(20).pool == 20
    assert AsyncOpenAI(api_key="none").timeout == Timeout(600, connect=5)


async def test_myth_async_def_makes_it_parallel() -> None:
    """Three calls inside `async def`, one at a time; together only if you say so."""

    async def in_turn(ask: Ask) -> list[str]:
        return [await ask(question) for question in "abc"]

    async def together(ask: Ask) -> list[str]:
        return await asyncio.gather(*[ask(question) for question in "abc"])

    asks = [CountedAsk(fake_ask(0)) for _ in range(2)]
    await in_turn(asks[0])
    await together(asks[1])
    assert [ask.most for ask in asks] == [1, 3]


@leaves_sockets_open
def test_myth_a_client_per_call_is_safer(model_server: LocalServer) -> None:
    """Eight calls at once on one client, and each gets the answer to its question."""
    questions = [f"Question {n}" for n in range(8)]

    async def shared() -> list[str]:
        async with new_client(model_server) as client:
            return await asyncio.gather(*[ask(client, q) for q in questions])

    async def one_per_call() -> list[str]:
        return await asyncio.gather(
            *[ask(new_client(model_server), q) for q in questions]
        )

    answers = asyncio.run(shared())
    assert all(q in a for q, a in zip(questions, answers, strict=True))
    assert asyncio.run(one_per_call()) == answers
