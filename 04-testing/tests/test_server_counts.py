"""Faults on demand and counts, as the SDK and as a bare socket meet them."""

import asyncio
import gc
import itertools
import json
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
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
HELLO: Any = {"model": "any", "messages": [{"role": "user", "content": "Hello"}]}
STORM_TIMEOUT = 60.0  # seconds
NEVER = Settings(latency=600, spread=0)  # an answer that no test waits for


@pytest.fixture(autouse=True)
def silence(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever happens, the server has nothing to complain about."""
    caplog.set_level(logging.WARNING)
    yield
    assert caplog.records == []


def settings_with(*faults: Fault, **more: Any) -> Settings:
    return Settings(latency=0, chunk_delay=0, faults=faults, **more)


@asynccontextmanager
async def opened(
    settings: Settings = FAST, **options: Any
) -> AsyncIterator[tuple[Server, AsyncOpenAI]]:
    """Without certificates, whose loading would take longer than most tests."""
    plain = DefaultAsyncHttpxClient(verify=False, trust_env=False)
    options = {"api_key": "any", "max_retries": 0, "http_client": plain, **options}
    async with (
        serve(settings) as server,
        AsyncOpenAI(base_url=server.base_url, **options) as client,
    ):
        yield server, client


async def ask(client: AsyncOpenAI, question: Any = "Hello", **more: Any) -> Any:
    messages = [*more.pop("before", ()), {"role": "user", "content": question}]
    return await client.chat.completions.create(model="any", messages=messages, **more)


def post(stream: bool = False, question: str = "Hello", missing: int = 0) -> bytes:
    """Return a request, of whose body some bytes are missing."""
    message = {"role": "user", "content": question}
    body = json.dumps({"model": "any", "messages": [message], "stream": stream})
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer k\r\n"
    )
    head += f"connection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    return (head + body).encode()[: -missing or None]


async def speak(server: Server, stream: bool = False) -> tuple[bytes, bool]:
    """Return all that a bare socket receives, and whether the end was a reset."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(post(stream))
    received = b""
    try:
        while data := await reader.read(65536):
            received += data
    except ConnectionResetError:
        return received, True
    finally:
        writer.close()
    return received, False


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("500", openai.InternalServerError),
        ("503", openai.InternalServerError),
        ("429", openai.RateLimitError),
        ("reset", openai.APIConnectionError),
        ("cut", openai.APIConnectionError),
        ("malformed", json.JSONDecodeError),
    ],
)
async def test_a_fault_strikes_the_calls_it_is_told_to(
    kind: str, error: type[Exception]
) -> None:
    async with opened(settings_with(Fault(kind, calls=(2,)))) as (server, client):
        await ask(client)
        with pytest.raises(error):
            await ask(client)
        await ask(client)
        stats = server.stats()
    assert stats.faults == {kind: 1}
    assert stats.received == 3
    assert stats.answered == 2
    assert stats.refused == ({kind: 1} if kind.isdigit() else {})


@pytest.mark.parametrize(("wait", "seconds"), [(2.5, "3"), (0, "1")])
@pytest.mark.parametrize("kind", ["503", "429"])
async def test_a_refusal_says_when_to_come_again(
    kind: str, wait: float, seconds: str
) -> None:
    async with opened(settings_with(Fault(kind, calls=(1,), retry_after=wait))) as (
        _,
        client,
    ):
        with pytest.raises(openai.APIStatusError) as caught:
            await ask(client)
    headers = caught.value.response.headers
    assert (headers["retry-after"], headers["retry-after-ms"]) == (
        seconds,
        f"{wait * 1000:.0f}",
    )


async def test_a_reset_is_a_reset_and_nothing_was_answered() -> None:
    async with serve(settings_with(Fault("reset", calls=(1,)))) as server:
        assert await speak(server) == (b"", True)
        assert server.stats().tokens_billed == 0


async def test_cut_answer_has_half_its_bytes_and_is_billed() -> None:
    async with serve(settings_with(Fault("cut", calls=(1,)))) as server:
        received, was_reset = await speak(server)
        assert server.stats().tokens_billed > 0
        assert server.stats().answered == 0
    head, _, body = received.partition(b"\r\n\r\n")
    promised = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    assert not was_reset
    assert len(body) == promised // 2


async def test_a_cut_stream_ends_after_half_its_chunks() -> None:
    async with opened() as (server, client):
        whole = [chunk async for chunk in await ask(client, stream=True)]
        server.reset(settings_with(Fault("cut", calls=(1,))))
        stream = await ask(client, stream=True)
        got = [await anext(stream) for _ in range(len(whole) // 2)]
        with pytest.raises(openai.APIConnectionError):
            await anext(stream)
        stats = server.stats()
    assert len(got) == stats.chunks_sent
    assert (stats.answered, stats.faults) == (0, {"cut": 1})
    assert stats.completion_tokens > 0


async def test_malformed_stream_has_one_line_of_broken_json() -> None:
    async with opened(settings_with(Fault("malformed", calls=(1,)))) as (
        server,
        client,
    ):
        stream = await ask(client, stream=True)
        stats = await until(server, in_flight=0)
        for _ in range(stats.chunks_sent // 2):
            await anext(stream)
        with pytest.raises(json.JSONDecodeError):
            await anext(stream)
    async with serve(settings_with(Fault("malformed", calls=(1,)))) as server:
        received, _ = await speak(server, stream=True)
    assert b"data: [DONE]" in received


async def test_a_slow_answer_takes_ten_times_as_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        slept.append(seconds)
        await sleep(0)

    async with opened() as (server, client):
        monkeypatch.setattr("racelab.server.chat_calls.asyncio.sleep", note)
        seen = []
        for faults in ((), (Fault("slow", calls=(1, 2)),)):
            server.reset(Settings(latency=1, spread=0, chunk_delay=0.1, faults=faults))
            await ask(client)
            async for _ in await ask(client, stream=True):
                pass
            seen.append([seconds for seconds in slept if seconds])
            slept.clear()
        assert server.stats().answered == 2
    (plain, first_chunk, *between), slow = seen
    assert (plain, first_chunk, set(between)) == (1, 1, {0.1})
    assert slow == [10, 10, *(1.0 for _ in between)]


async def test_reset_ends_a_hanging_call_without_a_retry() -> None:
    async with opened(settings_with(Fault("hang", calls=(1,)))) as (server, client):
        trying = client.with_options(max_retries=3)
        hanging = asyncio.create_task(ask(trying))
        await until(server, in_flight=1)
        server.reset()
        with pytest.raises(openai.InternalServerError, match="reset"):
            await hanging
        assert server.stats().received == 0
        assert server.stats().in_flight == 0


async def test_hanging_call_is_never_counted_as_abandoned() -> None:
    async with opened(settings_with(Fault("hang", calls=(1,)))) as (server, client):
        call = asyncio.create_task(ask(client))
        await until(server, in_flight=1)
        call.cancel()
        stats = await until(server, in_flight=0)
    assert (stats.abandoned, stats.faults) == (0, {"hang": 1})
    assert stats.tokens_billed == 0


async def test_first_fault_that_fits_is_injected() -> None:
    faults = settings_with(
        Fault("503", calls=(2,)), Fault("500", calls=(2,), question="Paris")
    )
    async with opened(faults) as (server, client):
        for question in ("About Rome?", "In Paris", "In Paris", "paris"):
            with suppress(openai.InternalServerError):
                await ask(client, question)
        assert server.stats().faults == {"503": 1, "500": 1}
        assert server.stats().answered == 2


def test_probability_hits_the_same_calls_on_every_run() -> None:
    def struck(**more: Any) -> list[int]:
        settings = Settings(faults=(Fault("500", probability=0.1),), **more)
        return [n for n in range(1, 10_001) if settings.fault_for(n, "any")]

    assert len(struck()) == pytest.approx(1000, rel=0.1)
    assert struck() == struck()
    assert struck(seed=1) != struck(seed=2)


async def test_counts_keep_only_the_beginning_of_a_long_question() -> None:
    async with opened() as (server, client):
        await ask(client, "x" * 20_000)
        assert server.stats().answers == {"x" * 2000: 1}


async def test_arrivals_are_in_order_and_start_with_the_reset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticks = itertools.count(100.0)
    clock = SimpleNamespace(perf_counter=lambda: next(ticks), process_time=lambda: 0.0)
    monkeypatch.setattr("racelab.server.metrics.time", clock)
    async with opened() as (server, client):
        for _ in range(3):
            await ask(client)
        before = server.stats().arrivals
        server.reset()
        await ask(client)
        (after,) = server.stats().arrivals
    assert list(before) == sorted(before)
    assert before[0] == after == 1


async def test_connections_and_calls_in_flight_are_seen() -> None:
    async with opened(NEVER) as (server, client):
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


async def test_abandoned_answer_is_billed_in_full() -> None:
    async with opened() as (server, client):
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
    async with opened() as (server, client):
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


async def test_call_from_before_a_reset_is_not_counted() -> None:
    slow = Settings(latency=0.05, spread=0)
    async with opened(slow) as (server, client):
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
    async with opened(settings) as (server, client):

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


async def test_stats_and_settings_go_over_http() -> None:
    headers = {"x-control-secret": "s3cret"}
    async with (
        serve(FAST, control_secret="s3cret") as server,
        ClientSession(server.base_url.removesuffix("/v1"), headers=headers) as http,
    ):
        await speak(server)
        async with http.get("/control/stats") as response:
            stats = Stats.from_json(await response.json())
        assert stats.answers == {"Hello": 1}
        assert stats.cpu_seconds > 0
        settings = Settings(latency=0, faults=(Fault("500", calls=(1,)),))
        for content in (json.dumps(settings.to_json()), ""):  # the latter keeps them
            async with http.post("/control/reset", data=content) as response:
                assert response.status == 200
            assert server.stats().received == 0
            assert b"500 Internal" in (await speak(server))[0]


async def test_nothing_is_left_when_the_server_ends() -> None:
    """Idle, half a request, hanging, streaming, waiting, not reading: all are gone."""
    settings = Settings(
        latency=600, chunk_delay=60, faults=(Fault("hang", calls=(1,)),)
    )
    long, before, writers = "x" * 1_000_000, asyncio.all_tasks(), []
    async with serve(settings) as server:
        for data in (b"", post(missing=5), post(question=long), post(True, long)):
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(data)
            writers.append(writer)
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


@pytest.mark.long
def test_the_benchmark_measures_both_servers(run_inprocess: RunScript) -> None:
    ran = run_inprocess("benchmark_server.py", ROUNDS=1, SECONDS=0.1, CONNECTIONS=4)
    assert (ran.status, ran.word) == (0, "RESULT"), ran
    _, ours, bare, _ = ran.out.splitlines()
    assert ours.startswith("racelab")
    assert bare.startswith("bare aiohttp")
    assert ran.numbers[-1] < 100  # per cent: checking and counting has its price


@pytest.mark.parametrize("stream", [False, True])
async def test_every_answer_carries_the_six_headers(stream: bool) -> None:
    settings = Settings(latency=0, chunk_delay=0, rpm=60, tpm=1, token_burst=1000)
    async with opened(settings) as (server, client):
        raw = await client.chat.completions.with_raw_response.create(
            **HELLO, stream=stream
        )
        if stream:
            assert [chunk async for chunk in raw.parse()]
        billed = server.stats().tokens_billed
        assert raw.headers["x-ratelimit-remaining-tokens"] == str(1000 - billed)
        assert raw.headers["x-ratelimit-remaining-requests"] == "9"
        assert sum(name.startswith("x-ratelimit-") for name in raw.headers) == 6
        assert raw.headers["x-request-id"].startswith("req_")
        raw = await client.chat.completions.with_raw_response.create(
            **HELLO, max_tokens=100, n=2
        )
    left = int(raw.headers["x-ratelimit-remaining-tokens"])
    assert left == 1000 - billed - (4 + 2) - 200


async def test_each_key_has_its_buckets_and_reset_refills_them() -> None:
    settings = Settings(latency=0, rpm=60, request_burst=2)
    async with opened(settings) as (server, client):
        await ask(client)
        with pytest.raises(openai.BadRequestError):  # it counts against the limit
            await client.chat.completions.create(model="any", messages=[])
        await ask(client.with_options(api_key="two"))
        with pytest.raises(openai.RateLimitError):
            await ask(client)
        assert server.stats().refused == {"400": 1, "429": 1}
        server.reset()
        await ask(client)
