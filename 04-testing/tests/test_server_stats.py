"""What the local model server has seen: each call counted once, where it belongs."""

import asyncio
import gc
import itertools
import json
import logging
import socket
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from aiohttp import ClientSession
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from racelab import LocalServer
from racelab.pytest.run_scripts import RunScript
from racelab.pytest.wait_until import until
from racelab.server import Server, serve
from racelab.settings import Fault, Settings, Stats

FAST = Settings(latency=0, chunk_delay=0)
STORM_TIMEOUT = 60.0  # seconds
NEVER = Settings(latency=600, spread=0)  # an answer that no test waits for


@pytest.fixture(autouse=True)
def silence(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever happens, the server has nothing to complain about."""
    caplog.set_level(logging.WARNING)
    yield
    assert caplog.records == []


def client_of(server: Server, **options: Any) -> AsyncOpenAI:
    """Without certificates, whose loading would take longer than most tests."""
    plain = DefaultAsyncHttpxClient(verify=False, trust_env=False)
    options = {"api_key": "any", "max_retries": 0, **options}
    return AsyncOpenAI(base_url=server.base_url, http_client=plain, **options)


async def ask(client: AsyncOpenAI, question: str = "Hello", **more: Any) -> Any:
    messages = [{"role": "user", "content": question}]
    return await client.chat.completions.create(
        model="any",
        messages=messages,
        **more,
    )


async def test_a_fresh_server_has_seen_nothing() -> None:
    async with serve(FAST) as server:
        stats = server.stats()
    assert stats.arrivals == ()
    assert stats.tokens_billed == stats.received == stats.connections_open == 0


async def test_billed_tokens_are_the_sum_of_all_usages() -> None:
    async with serve(FAST) as server, client_of(server) as client:
        answers = await asyncio.gather(*(ask(client, f"Topic {n}?") for n in range(20)))
        answers.append(await ask(client, "Topic 3?", n=2))
        stats = server.stats()
    assert stats.prompt_tokens == sum(a.usage.prompt_tokens for a in answers)
    assert stats.completion_tokens == sum(a.usage.completion_tokens for a in answers)
    assert stats.answers["Topic 3?"] == 2
    assert len(stats.answers) == 20
    assert stats.answered == stats.received == len(stats.arrivals) == 21


async def test_counts_keep_only_the_beginning_of_a_long_question() -> None:
    long = "x" * 20_000
    async with serve(FAST) as server, client_of(server) as client:
        for question in (long + "a", long + "b", long + "a", "x" * 2000):
            await ask(client, question)
        answers = server.stats().answers
    assert sorted(answers.values()) == [1, 1, 2]
    assert answers["x" * 2000] == 1
    assert all(key.startswith("x" * 2000) and len(key) < 2050 for key in answers)


async def test_arrivals_are_in_order_and_start_with_the_reset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticks = itertools.count(100.0)
    clock = SimpleNamespace(perf_counter=lambda: next(ticks), process_time=lambda: 0.0)
    monkeypatch.setattr("racelab.server.metrics.time", clock)
    async with serve(FAST) as server, client_of(server) as client:
        for _ in range(3):
            await ask(client)
        before = server.stats().arrivals
        server.reset()
        await ask(client)
        (after,) = server.stats().arrivals
    assert list(before) == sorted(before)
    assert before[0] == after == 1


async def test_connections_and_calls_in_flight_are_seen() -> None:
    async with serve(NEVER) as server, client_of(server) as client:
        calls = [asyncio.create_task(ask(client)) for _ in range(7)]
        stats = await until(server, in_flight=7)
        assert (stats.connections_open, stats.connections_opened) == (7, 7)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await until(server, in_flight=0)
        call = asyncio.create_task(ask(client))
        stats = await until(server, in_flight=1)
        call.cancel()
    assert stats.largest_in_flight == 7


async def test_one_client_keeps_its_connection() -> None:
    async with serve(FAST) as server:
        async with client_of(server) as client:
            for _ in range(5):
                await ask(client)
            assert server.stats().connections_opened == 1
        stats = await until(server, connections_open=0)
    assert stats.connections_opened == 1


async def test_abandoned_answer_is_billed_in_full() -> None:
    async with serve(FAST) as server, client_of(server) as client:
        await ask(client)
        billed = server.stats().tokens_billed
        server.reset(NEVER)
        call = asyncio.create_task(ask(client))
        await until(server, in_flight=1)
        call.cancel()
        stats = await until(server, abandoned=1)
    assert (stats.answered, stats.answers) == (0, {})
    assert stats.tokens_billed == billed


async def test_a_client_that_leaves_a_stream_stops_it() -> None:
    async with serve(FAST) as server, client_of(server) as client:
        question = "word " * 200
        whole = [chunk async for chunk in await ask(client, question, stream=True)]
        server.reset(Settings(latency=0, chunk_delay=0.001))
        stream = await ask(client, question, stream=True)
        await anext(stream)
        await stream.close()
        stats = await until(server, abandoned=1)
        assert 1 <= stats.chunks_sent < len(whole) // 2
        assert stats.answered == stats.in_flight == 0
        await asyncio.sleep(0)
        assert server.stats().chunks_sent == stats.chunks_sent
        server.reset(FAST)
        await ask(client, question)
        assert 0 < stats.completion_tokens < server.stats().completion_tokens


async def test_a_stream_that_is_merely_not_read_goes_on() -> None:
    async with serve(FAST) as server, client_of(server) as client:
        stream = await ask(client, "word " * 50, stream=True)
        stats = await until(server, answered=1)
        assert stats.chunks_sent > 50
        await stream.close()


async def test_call_from_before_a_reset_is_not_counted() -> None:
    slow = Settings(latency=0.05, spread=0)
    async with serve(slow) as server, client_of(server) as client:
        old = asyncio.create_task(ask(client, "old"))
        await until(server, in_flight=1)
        server.reset()
        await ask(client, "new")
        await old
        stats = server.stats()
    assert stats.answers == {"new": 1}
    assert stats.received == stats.answered == stats.largest_in_flight == 1
    assert stats.in_flight == 0


KINDS = ("500", "503", "429", "reset", "cut", "malformed", "slow", "hang")


def accounted_for(stats: Stats) -> int:
    """How many calls have come to an end, or to one that never comes."""
    spoiled = sum(stats.faults.get(kind, 0) for kind in KINDS[3:6] + KINDS[7:])
    refused = sum(stats.refused.values())
    return stats.answered + stats.abandoned + refused + spoiled


async def test_every_call_of_a_storm_is_counted_exactly_once() -> None:
    settings = Settings(
        latency=0.01,
        chunk_delay=0,
        rpm=60,
        request_burst=160,
        faults=tuple(Fault(kind, probability=0.06) for kind in KINDS),
    )
    async with serve(settings) as server, client_of(server) as client:

        async def one(number: int) -> None:
            options: dict[str, Any] = {"stream": True} if number % 3 == 0 else {}
            options |= {"extra_body": {"messages": []}} if number % 10 == 0 else {}
            with suppress(openai.APIError, json.JSONDecodeError):
                answer = await ask(client, f"Topic {number % 50}?", **options)
                if number % 3 == 0:
                    async for _ in answer:
                        pass

        calls = [asyncio.create_task(one(number)) for number in range(200)]
        async with asyncio.timeout(STORM_TIMEOUT):
            while accounted_for(server.stats()) < 200:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0)
        assert server.stats().in_flight == server.stats().faults["hang"]
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        stats = await until(server, in_flight=0)
    assert set(stats.faults) == set(KINDS)
    assert set(stats.refused) == {"400", "429", "500", "503"}
    assert stats.received == accounted_for(stats) == 200
    assert sum(stats.answers.values()) == stats.answered


async def test_stats_survive_the_way_over_http() -> None:
    headers = {"x-control-secret": "s3cret"}
    async with (
        serve(FAST, control_secret="s3cret") as server,
        client_of(server) as client,
        ClientSession(server.base_url.removesuffix("/v1"), headers=headers) as http,
    ):
        await ask(client, "\N{SNOWMAN}?")
        async with http.get("/control/stats") as response:
            stats = Stats.from_json(await response.json())
        assert stats.answers == {"\N{SNOWMAN}?": 1}
        assert stats.cpu_seconds > 0
        settings = Settings(latency=0, faults=(Fault("500", calls=(1,)),))
        async with http.post("/control/reset", json=settings.to_json()) as response:
            assert response.status == 200
        with pytest.raises(openai.InternalServerError):
            await ask(client)
        async with http.post("/control/reset") as response:
            assert response.status == 200
        assert server.stats().received == 0
        with pytest.raises(openai.InternalServerError):
            await ask(client)


async def test_nothing_is_left_when_the_server_ends() -> None:
    """Idle, half a request, hanging, streaming, waiting, not reading: all are gone."""
    settings = Settings(
        latency=600, chunk_delay=60, faults=(Fault("hang", calls=(1,)),)
    )
    before = asyncio.all_tasks()
    writers = []
    async with serve(settings) as server:
        message = {"role": "user", "content": "x" * 1_000_000}
        for body in (
            None,
            b"",
            json.dumps({"model": "any", "messages": [message]}).encode(),
            json.dumps(
                {"model": "any", "messages": [message], "stream": True}
            ).encode(),
        ):
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writers.append(writer)
            if body is not None:
                head = (
                    b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
                    b"authorization: Bearer any\r\ncontent-length: %d\r\n\r\n"
                )
                writer.write(head % (len(body) or 10) + body)
        await until(server, received=3, in_flight=2)
        port = server.port
    assert asyncio.all_tasks() == before
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
    for writer in writers:
        writer.close()
    gc.collect()  # a socket left open would warn now, and a warning fails the test


async def test_connection_that_is_being_made_is_closed() -> None:
    before = asyncio.all_tasks()
    for turns in range(10):
        async with serve(FAST) as server:
            sockets = [socket.socket() for _ in range(3)]
            for each in sockets:
                each.setblocking(False)
                each.connect_ex(("127.0.0.1", server.port))
            for _ in range(turns):
                await asyncio.sleep(0)
        assert asyncio.all_tasks() == before
        for each in sockets:
            each.close()
    gc.collect()


def test_asking_for_the_counts_is_not_counted(model_server: LocalServer) -> None:
    assert [model_server.stats().connections_opened for _ in range(3)] == [0, 0, 0]
    assert model_server.stats().connections_open == 0


def test_the_benchmark_measures_both_servers(run_inprocess: RunScript) -> None:
    ran = run_inprocess("benchmark_server.py", ROUNDS=1, SECONDS=0.1, CONNECTIONS=4)
    assert (ran.status, ran.word) == (0, "RESULT"), ran
    _, ours, bare, _ = ran.out.splitlines()
    assert ours.startswith("racelab")
    assert bare.startswith("bare aiohttp")
    assert ran.numbers[-1] < 100  # per cent: checking and counting has its price
