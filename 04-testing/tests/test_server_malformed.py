"""Hundreds of malformed requests: each gets an answer or a 4xx with a JSON error.

The requests are drawn from a seed, so that a failure names one to look at.
"""

import asyncio
import copy
import gzip
import json
import logging
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

from racelab.pytest.wait_until import until
from racelab.server import Server, serve
from racelab.settings import Settings

ANSWER_TIMEOUT = 60.0  # seconds; a request that takes longer hangs
HEAD = "host: x\r\nauthorization: Bearer any\r\nconnection: close\r\n"
GOOD: dict[str, Any] = {
    "model": "any",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Use search as json"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "search", "arguments": "{}"},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "found"},
        {"role": "user", "content": "Use search"},
    ],
    "tools": [
        {
            "type": "function",
            "function": {
                "name": "search",
                "description": "finds things",
                "strict": True,
                "parameters": {
                    "type": "object",
                    "properties": {
                        "query": {"type": "string", "maxLength": 9},
                        "page": {"type": "integer", "minimum": 1, "maximum": 9},
                        "tree": {"$ref": "#/$defs/tree"},
                    },
                    "required": ["query", "page", "tree"],
                    "additionalProperties": False,
                    "$defs": {"tree": {"type": "array", "items": {"$ref": "#"}}},
                },
            },
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
    "stop": ["a", "b"],
    "logit_bias": {"1": 2},
    "metadata": {"a": "b"},
    "modalities": ["text"],
    "n": 2,
    "seed": 1,
    "temperature": 1.5,
    "logprobs": True,
    "top_logprobs": 2,
    "max_tokens": 100,
    "service_tier": "auto",
    "user": "me",
}
POISON: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2.5,
        10**30,
        "",
        "a",
        "\ud800\x00\u2028",
        "x" * 9999,
    ),
    *([], [[]], [None], [1, 2], {}, {"": {}}, {"$ref": "#"}, {"type": {}}, ["a"] * 200),
    *([{"role": "user", "content": "Hello"}] * 3, {"a": {"b": [{"c": None}]}}),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value within a value."""
    keys: Any = ()
    if isinstance(value, dict):
        keys = value
    elif isinstance(value, list):
        keys = range(len(value))
    return [path, *(p for key in keys for p in places(value[key], (*path, key)))]


PLACES = places(GOOD)[1:]


def request(
    body: bytes, line: str = "POST /v1/chat/completions", more: str = ""
) -> bytes:
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


def truncated_json(draw: random.Random) -> bytes:
    body = json.dumps(GOOD).encode()
    return request(body[: draw.randrange(len(body))])


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
    strict = draw.random() < 0.5
    function["strict"] = strict
    return request(json.dumps({**GOOD, "tools": tools}).encode())


def unknown_place(draw: random.Random) -> bytes:
    method = draw.choice(["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
    paths = ["/", "//", "/v1", "/v1/chat", "/v1/completions", "/v1/chat/completions/"]
    paths += ["/%00", "/%zz", "/v1/models/../../etc/passwd", "/a?b=%", "/control/stats"]
    paths += [
        "*",
        "/v1/chat/completions%0d%0a",
        "/" + "x" * 4000,
        "http://[/",
        "/\udcff",
    ]
    path = draw.choice(paths)
    return request(b"{}", f"{method} {path}")


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
        b"\r\n\r\nX\r\n\r\n",
    ]
    lines += [
        b"GET / HTTP/9.9\r\n\r\n",
        b"FROB / HTTP/1.1\r\n\r\n",
        b"GET  HTTP/1.1\r\n",
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


@pytest_asyncio.fixture
async def server() -> AsyncIterator[Server]:
    settings = Settings(latency=0, chunk_delay=0)
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


@pytest.mark.parametrize(
    ("generate", "count", "least"),
    [
        (poisoned, 200, 20),
        (truncated_json, 30, 30),
        (garbled_json, 60, 20),
        (nested_json, 30, 15),
        (nested_schema, 10, 2),
        (unknown_place, 60, 60),
        (bad_headers, 40, 30),
        (bad_chunks, 6, 6),
        (not_http, 20, 20),
        (bad_key, 12, 9),
        (large_body, 4, 4),
    ],
)
async def test_malformed_request_gets_a_json_error_and_never_500(
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
            assert b"content-type: application/json" in head.lower(), where
            error = json.loads(body)["error"]
            assert set(error) == {"message", "type", "param", "code"}, where
            assert error["message"], where
            assert b"Traceback" not in body, where
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
        {**ASKED, "n": 10**9, "logprobs": True, "top_logprobs": 20},
        {**ASKED, "n": 4, "stream": True, "max_tokens": 200, "logprobs": True},
        {**ASKED, "messages": CALLED, "tools": TOOLS, "n": 128},
        {**ASKED, "messages": [{"role": "user", "content": "x"}] * 20_000},
        {**ASKED, "messages": [CALL, {**RESULT, "content": LONG * 20}], "n": 128},
        schema_request({"type": "string", "pattern": "^(a+)+$"}, n=128),
        schema_request({"type": "array", "items": {"type": "string"}, "minItems": 500}),
        schema_request({"$defs": DOUBLED, "properties": {"a": ref(0)}}),
    ],
)
async def test_work_for_one_request_is_bounded(server: Server, body: Any) -> None:
    """Counts what is sent, because time depends on the machine."""
    received = await exchange(server, request(json.dumps(body).encode()))
    assert received.startswith(b"HTTP/1.1 200")
    assert len(received) < 5_000_000


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "minItems": 10**400},
        {"type": "array", "minItems": 10**9, "items": {"const": "x" * 1000}},
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
