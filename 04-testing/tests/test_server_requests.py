"""What the server refuses, over a bare socket, and hundreds of malformed requests.

The malformed ones are drawn from a seed, so that a failure names one to look at.
"""

import asyncio
import copy
import gzip
import json
import logging
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from racelab.pytest.wait_until import until
from racelab.server import Server, serve
from racelab.settings import Settings

ANSWER_TIMEOUT = 60.0  # seconds; a request that takes longer hangs
HEAD = "host: x\r\nauthorization: Bearer any\r\nconnection: close\r\n"
USER = {"role": "user", "content": "Hello"}
HELLO: dict[str, Any] = {"model": "any", "messages": [USER]}
SEARCH = {"type": "function", "function": {"name": "search"}}
HUGE = 10**400
PARAMETERS = {
    "type": "object",
    "properties": {
        "query": {"type": "string", "maxLength": 9},
        "page": {"type": "integer", "minimum": 1, "maximum": 9},
        "tree": {"$ref": "#/$defs/tree"},
    },
    "required": ["query", "page", "tree"],
    "$defs": {"tree": {"type": "array", "items": {"$ref": "#"}}},
}


def called(*ids: str) -> dict[str, Any]:
    function = {"name": "search", "arguments": "{}"}
    calls = [{"id": name, "type": "function", "function": function} for name in ids]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def answered(name: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": name, "content": "found"}


GOOD: dict[str, Any] = {
    "model": "any",
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "Use search as json"}]},
        called("call_1"),
        answered("call_1"),
        {"role": "user", "content": "Use search"},
    ],
    "tools": [
        {
            "type": "function",
            "function": {"name": "search", "strict": True, "parameters": PARAMETERS},
        }
    ],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "x", "schema": {"enum": [1, 2]}},
    },
    "stream": True,
    "stream_options": {"include_usage": True},
    "n": 2,
    "max_tokens": 100,
    "user": "me",
}
POISON: list[Any] = [
    *(None, True, False, 0, -1, 1, 2.5, 10**30, "", "a", "\ud800\x00\u2028"),
    *("x" * 9999, [], [[]], [None], [1, 2], {}, {"": {}}, {"$ref": "#"}, {"type": {}}),
    *([USER] * 3, ["a"] * 200, {"a": {"b": [{"c": None}]}}),
]
CHAT = "POST /v1/chat/completions"
SECRET = b"s3cret"  # marks a body that is sent with the secret


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value within a value."""
    keys: Any = ()
    if isinstance(value, dict):
        keys = value
    elif isinstance(value, list):
        keys = range(len(value))
    return [path, *(p for key in keys for p in places(value[key], (*path, key)))]


PLACES = places(GOOD)[1:]


def request(body: bytes, line: str = CHAT, more: str = "") -> bytes:
    head = f"{line} HTTP/1.1\r\n{HEAD}{more}content-length: {len(body)}\r\n\r\n"
    return head.encode("utf-8", "surrogateescape") + body


def poisoned(draw: random.Random) -> bytes:
    """One to three values replaced, removed, or joined by one that does not belong."""
    body: Any = copy.deepcopy(GOOD)
    for _ in range(draw.randint(1, 3)):
        *parents, last = draw.choice(PLACES)
        try:
            parent = body
            for key in parents:
                parent = parent[key]
            how = draw.choice(["replace", "replace", "remove", "add"])
            if how == "remove":
                del parent[last]
            elif how == "add":
                parent["bogus"] = draw.choice(POISON)
            else:
                parent[last] = draw.choice(POISON)
        except (LookupError, TypeError):  # an earlier poison has eaten this place
            continue
    return request(json.dumps(body).encode())


def garbled_json(draw: random.Random) -> bytes:
    body = bytearray(json.dumps(GOOD).encode())
    for _ in range(draw.randint(1, 5)):
        body[draw.randrange(len(body))] = draw.randrange(256)
    return request(bytes(body))


def nested_json(draw: random.Random) -> bytes:
    depth = draw.choice([100, 900, 1000, 5000, 100_000])
    name = draw.choice([*GOOD, "bogus"])
    opening, closing = draw.choice([("[", "]"), ('{"anyOf":[', "]}"), ('{"a":', "}")])
    nested = opening * depth + "1" + closing * depth
    body = json.dumps({**GOOD, name: "HERE"}).replace('"HERE"', nested)
    return request(body.encode())


def nested_schema(draw: random.Random) -> bytes:
    depth = draw.choice([50, 150, 300, 450, 900])
    schema: Any = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema, "minItems": 1}
    parameters = {"type": "object", "properties": {"a": schema}}
    function = {"name": "search", "parameters": parameters}
    tools = [{"type": "function", "function": function}]
    return request(json.dumps({**GOOD, "tools": tools}).encode())


def unknown_place(draw: random.Random) -> bytes:
    method = draw.choice(["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
    paths = ["/", "//", "/v1", "/v1/chat", "/v1/completions", "/v1/chat/completions/"]
    paths += ["/%00", "/%zz", "/v1/models/../../etc/passwd", "/a?b=%", "/control/stats"]
    paths += ["*", "/v1/chat/completions%0d%0a", "/" + "x" * 4000, "http://[/"]
    return request(b"{}", f"{method} {draw.choice([*paths, '/' + chr(0xDCFF)])}")


def bad_headers(draw: random.Random) -> bytes:
    more = draw.choice(
        [
            "content-length: 7\r\n",
            "content-length: -1\r\n",
            "content-length: x\r\n",
            "transfer-encoding: chunked\r\n",
            "transfer-encoding: bogus\r\n",
            "no colon here\r\n",
            ": no name\r\n",
            "bad\x00header: x\r\n",
            "x: " + "y" * 20_000 + "\r\n",
            "x: y\r\n" * 500,
            "content-encoding: gzip\r\n",
            "content-encoding: deflate\r\n",
        ]
    )
    return request(json.dumps(GOOD).encode(), more=more)


def bad_chunks(draw: random.Random) -> bytes:
    head = f"POST /v1/chat/completions HTTP/1.1\r\n{HEAD}"
    head += "transfer-encoding: chunked\r\n\r\n"
    chunks = draw.choice(["zz\r\nabc\r\n", "-5\r\nabc\r\n", "3\r\nabcdef\r\n0\r\n\r\n"])
    return (head + chunks).encode()


def not_http(draw: random.Random) -> bytes:
    lines = [
        b"\x16\x03\x01\x02\x00\x01",
        b"HELO mail",
        b"GET /\r\n",
        b"GET  HTTP/1.1\r\n",
    ]
    lines += [
        b"\r\n\r\nX\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"FROB / HTTP/1.1\r\n\r\n",
    ]
    return draw.choice([*lines, draw.randbytes(200)]) + b"\r\n\r\n"


def bad_key(draw: random.Random) -> bytes:
    key = draw.choice(
        ["", "Bearer", "Basic x", "Bearer \t", "\udcff", "Bearer a" * 500]
    )
    raw = request(json.dumps(GOOD).encode(), more="x: y\r\n")
    wrong = f"authorization: {key}".encode("utf-8", "surrogateescape")
    return raw.replace(b"authorization: Bearer any", wrong)


def large_body(draw: random.Random) -> bytes:
    size = 4 * 1024 * 1024 + draw.randint(1, 1000)
    body = draw.choice([b"x" * size, gzip.compress(b" " * size)])
    more = "content-encoding: gzip\r\n" if body[:1] != b"x" else ""
    return request(body, more=more)


NOT_HTTP = (unknown_place, bad_headers, bad_chunks, not_http)  # some answered as text


@pytest_asyncio.fixture
async def server() -> AsyncIterator[Server]:
    settings = Settings(latency=0, chunk_delay=0, tpm=1e9)
    async with serve(settings, control_secret="s3cret") as server:
        yield server


async def exchange(server: Server, data: bytes) -> bytes:
    """All that the server says to these bytes, after which we say no more."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    received = b""
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            writer.write(data)
            while piece := await reader.read(65536):
                received += piece
    except ConnectionResetError:
        pass  # it had heard enough
    finally:
        writer.close()
    return received


async def tell(server: Server, body: Any, line: str = CHAT) -> tuple[int, Any]:
    """Return the status and the JSON of one request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    received = await exchange(server, request(data, line))
    head, _, content = received.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), json.loads(content)


@pytest.mark.parametrize(
    ("generate", "count", "least"),
    [
        (poisoned, 200, 20),
        (garbled_json, 60, 20),
        (nested_json, 30, 10),  # how deep JSON may be nested depends on the Python
        (nested_schema, 10, 2),
        (unknown_place, 60, 60),
        (bad_headers, 40, 30),
        (bad_chunks, 6, 6),
        (not_http, 20, 20),
        (bad_key, 12, 9),
        (large_body, 4, 4),
    ],
)
async def test_malformed_request_gets_a_4xx_and_never_500(
    server: Server,
    caplog: pytest.LogCaptureFixture,
    generate: Callable[[random.Random], bytes],
    count: int,
    least: int,
) -> None:
    caplog.set_level(logging.WARNING)
    refused = 0
    for seed in range(count):
        sent = generate(random.Random(seed))
        received = await exchange(server, sent)
        where = f"{generate.__name__} {seed}: {sent[:300]!r} -> {received[:300]!r}"
        head, _, body = received.partition(b"\r\n\r\n")
        status = int(head.split(b" ")[1]) if head else 0
        assert status == 200 or 400 <= status < 500, where
        if status != 200:
            refused += 1
            assert b"Traceback" not in body, where
            if b"content-type: application/json" in head.lower():
                assert len(json.loads(body)["error"]) == 4, where
            else:
                assert generate in NOT_HTTP, where
    assert refused >= least
    assert caplog.records == []
    last = await exchange(server, request(json.dumps(GOOD).encode()))
    assert last.startswith(b"HTTP/1.1 200")
    await until(server, in_flight=0)


def ref(name: object) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{name}"}


def schema_request(schema: Any, **more: Any) -> dict[str, Any]:
    described = {"name": "x", "schema": schema}
    wanted = {"type": "json_schema", "json_schema": described}
    return {**ASKED, "response_format": wanted, **more}


LONG = "a " * 20_000
ASKED = {"model": "any", "messages": [{"role": "user", "content": LONG}]}
DOUBLED = {
    str(n): {"properties": {"a": ref(n + 1), "b": ref(n + 1)}} for n in range(60)
}
X = "x" * 1000
OBJECT = {"type": "object", "required": [X]}
TOOLS = [{"type": "function", "function": {"name": f"t{n}"}} for n in range(500)]
CALL = {"role": "assistant", "tool_calls": [{"id": "a"}]}
RESULT = {"role": "tool", "tool_call_id": "a"}
CALLED = [{"role": "user", "content": " ".join(f"t{n}" for n in range(500))}]


@pytest.mark.parametrize(
    "body",
    [
        {**ASKED, "n": 10**9},
        {**ASKED, "n": 4, "stream": True, "max_tokens": 200},
        {**ASKED, "messages": CALLED, "tools": TOOLS, "n": 32},
        {**ASKED, "messages": [{"role": "user", "content": "x"}] * 20_000},
        {**ASKED, "messages": [CALL, {**RESULT, "content": LONG * 20}], "n": 128},
        schema_request({"type": "array", "items": {"type": "string"}, "minItems": 500}),
    ],
)
async def test_work_for_one_request_is_bounded(server: Server, body: Any) -> None:
    """Counts what is sent, because time depends on the machine."""
    received = await exchange(server, request(json.dumps(body).encode()))
    assert received.startswith(b"HTTP/1.1 200")
    assert len(received) < 1_000_000


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "minItems": 10**400},
        {"type": "array", "minItems": 9000, "items": {"enum": ["x" * 1000]}},
        {"type": "array", "minItems": 9000, "items": OBJECT},
        {"type": "string", "minLength": 10**9},
        {
            "type": "array",
            "minItems": 99,
            "items": {"type": "string", "minLength": 9999},
        },
        {"type": "array", "minItems": 999, "items": {"anyOf": [{"type": 1}] * 9999}},
        {"type": "array", "minItems": 9000, "items": {"anyOf": [{"const": 1}] * 1000}},
        {"type": "array", "minItems": 9000, "items": {**OBJECT, "required": [5] * 999}},
        {
            "type": "array",
            "minItems": 9000,
            "items": {"$ref": f"#/{X}"},
            X: {"const": 1},
        },
        {"type": "integer", "minimum": 10**400, "maximum": 10.5},
        {"$defs": DOUBLED, "properties": {"a": ref(0)}},
        {
            "properties": {
                "a": {"type": "string", "minLength": -(10**9)},
                "b": {"type": "string", "minLength": 10**6},
            }
        },
    ],
)
async def test_schema_of_a_large_value_gets_400(server: Server, schema: Any) -> None:
    body = json.dumps(schema_request(schema)).encode()
    received = await exchange(server, request(body))
    assert received.startswith(b"HTTP/1.1 400"), received[:300]
    assert b"Invalid schema: " in received


@pytest.mark.parametrize(("n", "status"), [(1, b"200"), (128, b"400")])
async def test_choices_share_the_room_for_values(
    server: Server, n: int, status: bytes
) -> None:
    body = json.dumps(schema_request({"type": "string", "minLength": 5000}, n=n))
    received = await exchange(server, request(body.encode()))
    assert received.startswith(b"HTTP/1.1 " + status)


async def test_pattern_of_a_schema_is_never_run(server: Server) -> None:
    """To run this pattern on this text would take longer than the universe is old."""
    body = schema_request({"type": "string", "pattern": "^(a+)+$"})
    body["messages"] = [{"role": "user", "content": "a" * 5000 + "!"}]
    received = await exchange(server, request(json.dumps(body).encode()))
    assert received.startswith(b"HTTP/1.1 200")
    assert b"a" * 5000 + b"!" in received


HALF_A_BODY = request(json.dumps(GOOD).encode())[:-100]


async def test_a_body_that_does_not_come_is_given_up(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("racelab.server.http_body.BODY_TIMEOUT", 0.05)
    received = await exchange(server, HALF_A_BODY)
    assert received.startswith(b"HTTP/1.1 408")
    assert server.stats().refused == {"408": 1}


async def test_client_that_leaves_within_its_body_is_counted(
    server: Server,
) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(HALF_A_BODY)
    await until(server, received=1)
    writer.close()
    await until(server, abandoned=1)
    assert server.stats().tokens_billed == 0


def client_of(server: Server) -> AsyncOpenAI:
    """Without certificates, whose loading would take longer than most tests."""
    plain = DefaultAsyncHttpxClient(verify=False, trust_env=False)
    url = server.base_url
    return AsyncOpenAI(base_url=url, http_client=plain, api_key="any", max_retries=0)


UNANSWERED = (
    "An assistant message with 'tool_calls' must be followed by tool messages "
    "responding to each 'tool_call_id'. The following tool_call_ids did not have "
    "response messages: "
)
ORPHAN = (
    "Invalid parameter: messages with role 'tool' must be a response to a preceeding "
    "message with 'tool_calls'."
)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (None, "Invalid 'messages': expected an array of"),
        ("Hello", "Invalid 'messages': expected an array of"),
        ([], "Invalid 'messages': expected an array of"),
        ([USER, "Hello"], "Invalid 'messages[1]': expected an object with a role."),
        ([{"role": 5}], "Invalid 'messages[0]': expected an object with a role."),
        ([USER, called("a")], f"{UNANSWERED}a"),
        ([USER, called("a", "b", "c"), answered("b"), USER], f"{UNANSWERED}a, c"),
        ([USER, called("a"), called("b"), answered("a")], f"{UNANSWERED}a"),
        ([USER, answered("a")], ORPHAN),
        (
            [USER, called("a"), answered("z")],
            "Invalid parameter: 'tool_call_id' of 'z'",
        ),
        ([called("a"), answered(["a"])], "Invalid parameter: 'tool_call_id' of"),
        ([called("a", "b"), *[answered("a")] * 2], "Invalid parameter: 'tool_call_id'"),
    ],
)
async def test_messages_out_of_order_get_400(
    server: Server, messages: Any, message: str
) -> None:
    status, answer = await tell(server, {"model": "any", "messages": messages})
    assert status == 400
    assert answer["error"]["message"].startswith(message)
    assert answer["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"messages": [USER]}, 400),
        ({**HELLO, "model": 5}, 400),
        ({**HELLO, "model": "m" * 257}, 404),
        ({**HELLO, "max_tokens": HUGE}, 429),
        ({**HELLO, "frobnicate": "x" * 5_000_000}, 413),
        *((body, 400) for body in (b"", b"{", b"\xff\xfe", b"null", b"[]")),
        *((body, 400) for body in (b"[" * 100_000, b'{"model": ' + b"1" * 5000 + b"}")),
    ],
)
async def test_body_without_a_request_is_refused(
    server: Server, body: Any, status: int
) -> None:
    assert (await tell(server, body))[0] == status


@pytest.mark.parametrize(
    ("line", "body", "status"),
    [
        ("POST /v1/embedding", b"{}", 404),
        ("GET /v1/chat/completions", b"", 404),
        ("GET /control/stats", b"", 403),
        ("GET /control/other", SECRET, 404),
        ("POST /control/reset", SECRET + b"{", 400),
        ("POST /control/reset", SECRET + b'{"rpm": 0}', 400),
        ("POST /control/reset", SECRET + b'{"faults": [{"kind": "rain"}]}', 400),
    ],
)
async def test_unknown_place_and_bad_settings_are_refused(
    server: Server, line: str, body: bytes, status: int
) -> None:
    more = "x-control-secret: s3cret\r\n" if body.startswith(SECRET) else ""
    data = request(body.removeprefix(SECRET), line, more)
    assert (await exchange(server, data)).startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize("key", ["", "Bearer", "Bearer ", "Basic any", "any"])
async def test_request_without_a_key_gets_401(server: Server, key: str) -> None:
    raw = request(b"{").replace(b"Bearer any", key.encode())
    assert (await exchange(server, raw)).startswith(b"HTTP/1.1 401")


async def test_sdk_raises_its_own_error_for_each_status() -> None:
    settings = Settings(latency=0, api_key="right", models=("small",))
    async with serve(settings) as server, client_of(server) as client:
        assert (await tell(server, b"", "GET /control/stats"))[0] == 404
        with pytest.raises(openai.AuthenticationError, match="Incorrect API key"):
            await client.models.list()
        client.api_key = "right"
        with pytest.raises(openai.NotFoundError, match="`any` does not exist"):
            await client.chat.completions.create(**HELLO)
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(model="small", messages=[])
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "options",
    [
        {"tools": [], "audio": None, "moderation": None, "functions": [{"name": "f"}]},
        {"frobnicate": 1, "temperature": "hot", "metadata": 5, "stop": {"a": 1}},
        {"tools": [None, 5, {}, {"function": {"name": 5}}, SEARCH], "tool_choice": 5},
        {"tools": SEARCH, "tool_choice": {"type": "function"}},
        {"response_format": "json", "stream_options": [1], "logprobs": True},
        {"response_format": {"type": "json_schema"}, "seed": -HUGE, "n": 1},
        {"max_tokens": 0, "max_completion_tokens": -1, "n": 0, "stream": "no"},
        {"max_tokens": 1.5, "max_completion_tokens": True, "n": "2", "stream": 1},
        {"n": None, "stop": None, "tools": None, "response_format": None},
    ],
)
async def test_unknown_null_and_wrong_parameters_are_accepted(
    server: Server, options: dict[str, Any]
) -> None:
    status, answer = await tell(server, {**HELLO, **options})
    assert status == 200
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"]


@pytest.mark.parametrize(
    "content", [None, 5, {}, [None, 5, "Hi", {"text": 5}, {"type": "text"}]]
)
async def test_message_without_text_is_an_empty_question(
    server: Server, content: Any
) -> None:
    body = {"model": "any", "messages": [{"role": "user", "content": content}]}
    assert (await tell(server, body))[0] == 200
    assert server.stats().answers == {"": 1}


async def test_results_of_one_message_come_in_any_order(server: Server) -> None:
    messages: list[Any] = [USER, called("a", "b"), answered("b"), answered("a"), USER]
    messages += [called("a"), answered("a"), {**called("z"), "role": "user"}]
    messages += [{"role": "assistant", "tool_calls": [5, {"id": 5}]}]
    messages += [{"role": "assistant", "content": "Hi", "tool_calls": 5}, USER]
    assert (await tell(server, {"model": "any", "messages": messages}))[0] == 200
