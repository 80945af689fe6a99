"""Trouble on demand: each kind as the SDK and as a bare socket meet it."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from racelab.pytest.wait_until import until
from racelab.server import Server, serve
from racelab.settings import Fault, Settings


@pytest.fixture(autouse=True)
def silence(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever happens, the server has nothing to complain about."""
    caplog.set_level(logging.WARNING)
    yield
    assert caplog.records == []


def settings_for(*faults: Fault, **more: Any) -> Settings:
    return Settings(latency=0, chunk_delay=0, faults=faults, **more)


def client_of(server: Server, **options: Any) -> AsyncOpenAI:
    """Without certificates, whose loading would take longer than most tests."""
    plain = DefaultAsyncHttpxClient(verify=False, trust_env=False)
    options = {"api_key": "any", "max_retries": 0, **options}
    return AsyncOpenAI(base_url=server.base_url, http_client=plain, **options)


@asynccontextmanager
async def opened(*faults: Fault) -> AsyncIterator[tuple[Server, AsyncOpenAI]]:
    async with (
        serve(settings_for(*faults)) as server,
        client_of(server) as client,
    ):
        yield server, client


async def ask(client: AsyncOpenAI, question: str = "Hello", **more: Any) -> Any:
    messages = [{"role": "user", "content": question}]
    return await client.chat.completions.create(
        model="any",
        messages=messages,
        **more,
    )


async def outcome(client: AsyncOpenAI, question: str = "Hello") -> str:
    """How one call ends: its status, or the name of the error."""
    try:
        await ask(client, question)
    except openai.APIStatusError as error:
        return str(error.status_code)
    except Exception as error:
        return type(error).__name__
    return "200"


async def speak(server: Server, stream: bool = False) -> tuple[bytes, bool]:
    """All that a bare socket receives, and whether the end was a reset."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    message = {"role": "user", "content": "Hello"}
    body = json.dumps({"model": "any", "messages": [message], "stream": stream})
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer k\r\n"
        b"connection: close\r\ncontent-length: %d\r\n\r\n%b"
        % (len(body), body.encode())
    )
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
    async with opened(Fault(kind, calls=(2,))) as (server, client):
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
    async with opened(Fault(kind, calls=(1,), retry_after=wait)) as (_, client):
        with pytest.raises(openai.APIStatusError) as caught:
            await ask(client)
    headers = caught.value.response.headers
    assert (headers["retry-after"], headers["retry-after-ms"]) == (
        seconds,
        f"{wait * 1000:.0f}",
    )


async def test_a_reset_is_a_reset_and_nothing_was_answered() -> None:
    async with serve(settings_for(Fault("reset", calls=(1,)))) as server:
        assert await speak(server) == (b"", True)
        assert server.stats().tokens_billed == 0


async def test_cut_answer_has_half_its_bytes_and_is_billed() -> None:
    async with serve(settings_for(Fault("cut", calls=(1,)))) as server:
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
        server.reset(settings_for(Fault("cut", calls=(1,))))
        stream = await ask(client, stream=True)
        got = [await anext(stream) for _ in range(len(whole) // 2)]
        with pytest.raises(openai.APIConnectionError):
            await anext(stream)
        stats = server.stats()
    assert len(got) == stats.chunks_sent
    assert (stats.answered, stats.faults) == (0, {"cut": 1})
    assert stats.completion_tokens > 0


async def test_malformed_stream_has_one_line_of_broken_json() -> None:
    async with opened(Fault("malformed", calls=(1,))) as (server, client):
        stream = await ask(client, stream=True)
        stats = await until(server, in_flight=0)
        for _ in range(stats.chunks_sent // 2):
            await anext(stream)
        with pytest.raises(json.JSONDecodeError):
            await anext(stream)
    async with serve(settings_for(Fault("malformed", calls=(1,)))) as server:
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
    assert slow == [10, 1, *(1.0 for _ in between)]


async def test_reset_ends_a_hanging_call_without_a_retry() -> None:
    async with opened(Fault("hang", calls=(1,))) as (server, client):
        trying = client.with_options(max_retries=3)
        hanging = asyncio.create_task(ask(trying))
        await until(server, in_flight=1)
        server.reset()
        with pytest.raises(openai.InternalServerError, match="reset"):
            await hanging
        assert server.stats().received == 0
        assert server.stats().in_flight == 0


async def test_a_hanging_call_ends_with_the_server() -> None:
    async with serve(settings_for(Fault("hang", calls=(1,)))) as server:
        hanging = asyncio.create_task(speak(server))
        await until(server, in_flight=1)
    received, _ = await hanging
    assert received == b""


async def test_hanging_call_is_never_counted_as_abandoned() -> None:
    async with opened(Fault("hang", calls=(1,))) as (server, client):
        call = asyncio.create_task(ask(client))
        await until(server, in_flight=1)
        call.cancel()
        stats = await until(server, in_flight=0)
    assert (stats.abandoned, stats.faults) == (0, {"hang": 1})
    assert stats.tokens_billed == 0


async def test_a_fault_can_follow_a_question() -> None:
    async with opened(Fault("500", question="Paris")) as (_, client):
        questions = ["About Paris?", "About Rome?", "paris", "In Paris"]
        ends = [await outcome(client, question) for question in questions]
    assert ends == ["500", "200", "200", "500"]


async def test_the_first_rule_that_fits_wins() -> None:
    faults = (Fault("503", calls=(2,)), Fault("500", calls=(2, 3)))
    async with opened(*faults) as (_, client):
        assert [await outcome(client) for _ in range(4)] == ["200", "503", "500", "200"]


def test_probability_hits_the_same_calls_on_every_run() -> None:
    def struck(**more: Any) -> list[int]:
        settings = Settings(faults=(Fault("500", probability=0.1),), **more)
        return [n for n in range(1, 10_001) if settings.fault_for(n, "any")]

    assert len(struck()) == pytest.approx(1000, rel=0.1)
    assert struck() == struck()
    assert struck(seed=1) != struck(seed=2)


def test_two_rules_draw_apart() -> None:
    half = Fault("500", probability=0.5)
    settings = Settings(faults=(half, Fault("503", probability=0.5)))
    kinds = [fault.kind for n in range(1, 4001) if (fault := settings.fault_for(n, ""))]
    assert kinds.count("500") == pytest.approx(2000, rel=0.1)
    assert kinds.count("503") == pytest.approx(1000, rel=0.1)


def test_a_rule_without_a_condition_strikes_nobody() -> None:
    settings = Settings(faults=(Fault("500"),))
    assert not any(settings.fault_for(n, "") for n in range(1, 1000))
