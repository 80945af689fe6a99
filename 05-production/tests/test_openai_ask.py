"""The one file that speaks to the API: what a team gets to see of it, over sockets."""

import asyncio
import json
import math
import re
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from openai import AsyncOpenAI, DefaultAioHttpClient, DefaultAsyncHttpxClient

from agents import (
    Answer,
    Ask,
    FailureKind,
    InvalidResponse,
    Limits,
    StatusError,
    Team,
    openai_ask,
)
from racelab import Fault, Settings
from racelab.pytest.wait_until import until
from racelab.server import serve

KEY = "topsecret-4f9c2e71d8a65b03"
HELLO = {"message": {"content": "Hello."}}
GARBAGE = b"hello world\r\n\r\n"  # no HTTP
CUT = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 99\r\n\r\n{"


@pytest.fixture(params=[DefaultAsyncHttpxClient, DefaultAioHttpClient])
def transport(request: pytest.FixtureRequest) -> Any:
    return request.param


def client_of(url: str, transport: Any, **options: Any) -> AsyncOpenAI:
    """Without certificates, whose loading would take longer than most tests."""
    plain = transport(verify=False, trust_env=False)
    return AsyncOpenAI(
        **{"base_url": url, "api_key": KEY, "http_client": plain} | options
    )


def reply(status: int, body: object, **headers: str) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    names = {"connection": "close", "content-length": str(len(data))}
    names |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"HTTP/1.1 {status} X", *(": ".join(name) for name in names.items())]
    return "\r\n".join([*lines, "", ""]).encode() + data


def refusal(status: int, message: str = "No.", code: str = "", **headers: str) -> bytes:
    error = {"message": message, "type": "a_type", "param": None, "code": code or None}
    return reply(status, {"error": error}, **headers)


@asynccontextmanager
async def replying(what: bytes) -> AsyncIterator[str]:
    """The base URL of a server that says this to everybody."""

    async def answer(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        await reader.readexactly(int(length[1]) if length else 0)
        writer.write(what)
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"


async def failure(ask: Ask) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the caller looks at it
        await ask("Hello?")
    return caught.value


async def replied(what: bytes, transport: Any = DefaultAioHttpClient) -> Answer:
    async with replying(what) as url, client_of(url, transport) as client:
        return await openai_ask(client, "any", Limits())("Hello?")


async def refused(what: bytes) -> StatusError:
    with pytest.raises(StatusError) as caught:
        await replied(what)
    return caught.value


@pytest.mark.parametrize(
    ("fault", "error", "says"),
    [
        ("500", StatusError, "500 The server had an error"),
        ("503", StatusError, "503 server_is_overloaded Our servers are"),
        ("429", StatusError, "429 rate_limit_exceeded Rate limit reached"),
        ("reset", ConnectionError, ".+"),
        ("cut", ConnectionError, ".+"),
        ("malformed", InvalidResponse, "not a chat completion: "),
        ("hang", TimeoutError, "no answer in time"),
    ],
)
async def test_each_fault_becomes_one_known_error(
    fault: str, error: type[Exception], says: str, transport: Any
) -> None:
    """Met once: the SDK would try again, even where its own client says three times."""
    limits = Limits(timeout=0.3 if fault == "hang" else 60)
    settings = Settings(latency=0, faults=(Fault(fault, calls=(1, 2, 3)),))
    async with (
        serve(settings) as server,
        client_of(server.base_url, transport, max_retries=3) as client,
    ):
        raised = await failure(openai_ask(client, "any", limits))
        assert type(raised) is error
        assert re.match(says, str(raised))
        assert (await until(server, in_flight=0)).received == 1


@pytest.mark.parametrize("reply", [GARBAGE, CUT, b"", b"HTTP/1.1 200 OK\r\nconte"])
async def test_what_is_not_http_is_a_connection_that_broke(
    reply: bytes, transport: Any
) -> None:
    with pytest.raises(ConnectionError):
        await replied(reply, transport)


async def test_refused_connection_is_no_timeout(transport: Any) -> None:
    """The SDK's aiohttp transport says that it timed out."""
    async with serve() as server:
        url = server.base_url
    async with client_of(url, transport) as client:
        raised = await failure(openai_ask(client, "any", Limits()))
    assert type(raised) is ConnectionError


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, ""), (401, "invalid_api_key"), (404, "model_not_found"), (502, "")],
)
async def test_a_refusal_has_status_code_and_words(status: int, code: str) -> None:
    error = await refused(refusal(status, "So it is - really.", code))
    assert (error.status, error.code) == (status, code or None)
    words = "the key is refused" if status == 401 else "So it is - really."
    assert str(error) == " ".join(filter(None, [str(status), code, words]))


async def test_a_refusal_in_other_words_is_one_too() -> None:
    assert str(await refused(reply(502, b"<html>Bad gateway</html>"))) == "502"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry_after_ms": "250", "retry_after": "1"}, 0.25),
        ({"retry_after": "3"}, 3),
        ({"retry_after": "1.5"}, 1.5),
        ({"retry_after": "-1"}, 0),
        (
            {
                "retry_after": "Wed, 21 Oct 2026 07:28:30 GMT",
                "date": "Wed, 21 Oct 2026 07:28:00 GMT",
            },
            30,
        ),
        ({"retry_after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),  # past, by our clock
        ({}, None),
        ({"retry_after": "soon"}, None),
        ({"retry_after": "inf"}, None),
        ({"retry_after": "Mon, 01 Jan 2024 00:00:00 +99999999999999999"}, None),
    ],
)
async def test_a_429_says_when_to_come_again(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert (await refused(refusal(429, **headers))).retry_after == seconds


async def test_a_refusal_says_what_is_left() -> None:
    left = {
        "x_ratelimit_remaining_requests": "0",
        "x_ratelimit_remaining_tokens": "1500",
    }
    remaining = (await refused(refusal(429, **left))).remaining
    assert (remaining.requests, remaining.tokens) == (0, 1500)


async def test_an_empty_account_is_not_asked_twice() -> None:
    what = refusal(429, "You exceeded your quota.", "insufficient_quota")
    async with (
        replying(what) as url,
        client_of(url, DefaultAioHttpClient) as client,
        Team(openai_ask(client, "any", Limits())) as team,
    ):
        outcome = await team.ask("Hello?")
    assert outcome.requests == 1
    assert outcome.failure is not None
    assert outcome.failure.kind is FailureKind.REFUSED


async def test_an_answer_has_its_usage_and_what_is_left(transport: Any) -> None:
    settings = Settings(latency=0, rpm=60, request_burst=9, tpm=6000, token_burst=900)
    async with (
        serve(settings) as server,
        client_of(server.base_url, transport) as client,
    ):
        answer = await openai_ask(client, "any", Limits())("Hello?")
        stats = server.stats()
    assert "Hello?" in answer.text
    assert answer.prompt_tokens == stats.prompt_tokens > 0
    assert answer.completion_tokens == stats.completion_tokens > 0
    assert answer.remaining.requests == 8
    assert answer.remaining.tokens is not None
    assert 0 < answer.remaining.tokens <= 900 - stats.tokens_billed


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"[" * 100_000,
        [],
        {},
        {"choices": []},
        {"choices": [{"message": None}]},
        {"choices": [{"message": {"content": None, "tool_calls": []}}]},
    ],
    ids=lambda body: str(body)[:20],
)
async def test_an_answer_without_a_text_cannot_be_read(body: object) -> None:
    with pytest.raises(InvalidResponse, match="not a chat completion: "):
        await replied(reply(200, body))


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": "3"}])
async def test_an_answer_without_usage_is_an_answer(usage: object) -> None:
    answer = await replied(reply(200, {"choices": [HELLO], "usage": usage}))
    assert answer == Answer("Hello.")
    assert answer.tokens is None


async def test_options_reach_the_api(transport: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    }
    json_schema = {"name": "place", "strict": True, "schema": schema}
    wanted = {"type": "json_schema", "json_schema": json_schema}
    async with (
        serve(Settings(latency=0, models=("one",))) as server,
        client_of(server.base_url, transport) as client,
    ):
        ask = openai_ask(client, "one", Limits(), response_format=wanted)
        assert json.loads((await ask("Where?")).text).keys() == {"city"}
        assert "`two`" in str(await failure(openai_ask(client, "two", Limits())))
        unknown = await failure(openai_ask(client, "one", Limits(), no_such_option=1))
        assert server.stats().received == 2
    assert type(unknown) is TypeError  # a mistake of the caller's, and no answer


async def test_times_go_to_the_transport(transport: Any) -> None:
    seen: list[dict[str, float | None]] = []

    class Noting(transport):
        async def send(self, request: Any, **options: Any) -> Any:
            seen.append(request.extensions["timeout"])
            return await super().send(request, **options)

    endless = Limits(timeout=math.inf, connect=math.inf)
    async with (
        serve(Settings(latency=0)) as server,
        client_of(server.base_url, Noting) as client,
    ):
        for limits in (Limits(timeout=7, connect=3), endless):
            await openai_ask(client, "any", limits)("Hello?")
    assert [(times["connect"], times["read"]) for times in seen] == [
        (3, 7),
        (None, None),  # the aiohttp transport trips over an infinite number
    ]


async def test_client_stays_unchanged_and_shares_its_connection(
    transport: Any,
) -> None:
    async with (
        serve(Settings(latency=0)) as server,
        client_of(server.base_url, transport, max_retries=5, timeout=99) as client,
    ):
        await openai_ask(client, "any", Limits())("Hello?")
        assert (client.max_retries, client.timeout) == (5, 99)
        assert not client.is_closed()
        await client.models.list()
        assert server.stats().connections_opened == 1


def all_that_it_says(error: BaseException | None) -> str:
    if error is None:
        return ""
    chain = [error.__cause__, error.__context__]
    own = [
        str(error),
        repr(error),
        repr(vars(error)),
        *traceback.format_exception(error),
    ]
    return "\n".join([*own, *map(all_that_it_says, chain)])


@pytest.mark.parametrize("echo", [KEY, f"{KEY[:8]}*****{KEY[-4:]}", f'"{KEY[:12]}..."'])
@pytest.mark.parametrize("status", [200, 400, 401, 403, 429, 500])
async def test_a_server_that_repeats_the_key_is_not_quoted(
    status: int, echo: str
) -> None:
    what = refusal(status, f"What is {echo}, please?")
    async with replying(what) as url, client_of(url, DefaultAioHttpClient) as client:
        raised = await failure(openai_ask(client, "any", Limits()))
    says = all_that_it_says(raised)
    assert KEY[:8] not in says
    assert KEY[-4:] not in says
    if status not in (200, 401):
        assert re.match(rf'{status} What is "?\[key\] please', str(raised))


@pytest.mark.parametrize("bad", [f"{KEY}\n", f"{KEY[:12]}\N{HORIZONTAL ELLIPSIS}"])
async def test_a_key_that_cannot_be_sent_is_not_quoted(
    bad: str, transport: Any
) -> None:
    """With the line end of its file; as a website shows it."""
    limits = Limits(tries=2, backoff=0)
    async with (
        serve() as server,
        client_of(server.base_url, transport, api_key=bad) as client,
        Team(openai_ask(client, "any", limits), limits) as team,
    ):
        outcome = await team.ask("Hello?")
        assert server.stats().received == 0
    assert outcome.failure is not None
    assert outcome.requests == 1 or bad.endswith("\n")  # it will not do better
    says = repr(outcome) + all_that_it_says(outcome.failure.cause)
    assert KEY[:8] not in says


async def test_a_word_that_is_no_key_is_not_hidden() -> None:
    """A key for a server of one's own is often a word: "local", "EMPTY", "any"."""
    what = refusal(400, "The local server was reset.")
    async with (
        replying(what) as url,
        client_of(url, DefaultAioHttpClient, api_key="local") as client,
    ):
        raised = await failure(openai_ask(client, "any", Limits()))
    assert str(raised) == "400 The local server was reset."


async def test_a_system_message_goes_before_the_question() -> None:
    async with (
        serve(Settings(latency=0)) as server,
        client_of(server.base_url, DefaultAioHttpClient) as client,
    ):
        plain = await openai_ask(client, "any", Limits())("Hello?")
        short = await openai_ask(client, "any", Limits(), system="Be brief.")("Hello?")
    assert isinstance(plain, Answer)
    assert isinstance(short, Answer)
    assert plain.prompt_tokens is not None
    assert short.prompt_tokens == plain.prompt_tokens + 4 + 3  # a message, and its text
