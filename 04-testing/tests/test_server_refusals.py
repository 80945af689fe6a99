"""What the local model server refuses, with OpenAI's status, body and wording."""

import json
from collections.abc import Mapping
from io import BytesIO
from typing import Any, NamedTuple

import openai
import pytest
from aiohttp import ClientSession
from openai import AsyncOpenAI, DefaultAsyncHttpxClient
from openai.types.chat.completion_create_params import (
    CompletionCreateParamsBase,
    CompletionCreateParamsStreaming,
)

from racelab.server import Server, serve
from racelab.server.errors import duration, masked
from racelab.server.parameters import NOT_HERE, PARAMETERS
from racelab.settings import Settings

CHAT = "/chat/completions"
KEY = {"authorization": "Bearer any"}
HELLO: dict[str, Any] = {
    "model": "any",
    "messages": [{"role": "user", "content": "Hello"}],
}
FUNCTION = {"name": "search", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": FUNCTION}]


def client_of(server: Server, **options: Any) -> AsyncOpenAI:
    """Without certificates, whose loading would take longer than most tests."""
    plain = DefaultAsyncHttpxClient(verify=False, trust_env=False)
    options = {"api_key": "any", "max_retries": 0, **options}
    return AsyncOpenAI(base_url=server.base_url, http_client=plain, **options)


class Reply(NamedTuple):
    status: int
    error: dict[str, Any]
    headers: Mapping[str, str]  # of any case


async def send(
    body: Any,
    method: str = "POST",
    path: str = CHAT,
    headers: dict[str, str] = KEY,
    settings: Settings | None = None,
) -> Reply:
    """What a server of its own answers to one request."""
    settings = settings or Settings(latency=0)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with (
        serve(settings, control_secret="s3cret") as server,
        ClientSession() as http,
    ):
        url = server.base_url.removesuffix("/v1") + (
            path if path.startswith("/control") else f"/v1{path}"
        )
        async with http.request(
            method, url, data=BytesIO(data), headers=headers
        ) as response:
            assert response.content_type == "application/json"
            content = await response.json()
            assert set(content["error"]) == {"message", "type", "param", "code"}
            return Reply(response.status, content["error"], response.headers)


def user(**changes: Any) -> dict[str, Any]:
    """A request whose only message has these fields."""
    return {**HELLO, "messages": [{"role": "user", "content": "Hello", **changes}]}


def formatted(**schema: Any) -> dict[str, Any]:
    described = {"name": "x", "strict": True, "schema": schema}
    wanted = {"type": "json_schema", "json_schema": described}
    return {**HELLO, "response_format": wanted}


def with_function(**changes: Any) -> dict[str, Any]:
    tools = [{"type": "function", "function": {**FUNCTION, **changes}}]
    return {**HELLO, "tools": tools}


MALFORMED: list[tuple[Any, str, str | None, str | None]] = [
    (
        {"messages": HELLO["messages"]},
        "you must provide a model parameter",
        None,
        None,
    ),
    (
        {"model": "any"},
        "Missing required parameter: 'messages'.",
        "messages",
        "missing_required_parameter",
    ),
    (
        {**HELLO, "messages": "Hello"},
        "Invalid type for 'messages': expected an array of objects, but got a string "
        "instead.",
        "messages",
        "invalid_type",
    ),
    (
        {**HELLO, "messages": []},
        "Invalid 'messages': empty array. Expected an array with minimum length 1, but "
        "got an empty array instead.",
        "messages",
        "empty_array",
    ),
    (
        {**HELLO, "messages": ["Hello"]},
        "Invalid type for 'messages[0]': expected an object, but got a string instead.",
        "messages[0]",
        "invalid_type",
    ),
    (
        {**HELLO, "temperature": 3},
        "Invalid 'temperature': decimal above maximum value. Expected a value <= 2, "
        "but got 3 instead.",
        "temperature",
        "decimal_above_max_value",
    ),
    (
        {**HELLO, "n": 0},
        "Invalid 'n': integer below minimum value. Expected a value >= 1, but got 0 "
        "instead.",
        "n",
        "integer_below_min_value",
    ),
    (
        {**HELLO, "n": 1.5},
        "Invalid type for 'n': expected an integer, but got a decimal number instead.",
        "n",
        "invalid_type",
    ),
    (
        {**HELLO, "stream": 1},
        "Invalid type for 'stream': expected a boolean, but got an integer instead.",
        "stream",
        "invalid_type",
    ),
    (
        {**HELLO, "temperature": True},
        "Invalid type for 'temperature': expected a decimal, but got a boolean "
        "instead.",
        "temperature",
        "invalid_type",
    ),
    (
        {**HELLO, "temperatur": 1},
        "Unknown parameter: 'temperatur'. Did you mean 'temperature'?",
        "temperatur",
        "unknown_parameter",
    ),
    (
        {**HELLO, "zzz_unknown": 1},
        "Unknown parameter: 'zzz_unknown'.",
        "zzz_unknown",
        "unknown_parameter",
    ),
    (
        {**HELLO, "functions": [FUNCTION]},
        "Unsupported parameter: 'functions' is not supported by this local server. Use "
        "'tools' instead.",
        "functions",
        "unsupported_parameter",
    ),
    (
        {**HELLO, "stop": list("abcde")},
        "Invalid 'stop': array too long. Expected an array with maximum length 4, but "
        "got an array with length 5 instead.",
        "stop",
        "array_above_max_length",
    ),
    (
        {**HELLO, "stop": ["a", 1]},
        "Invalid type for 'stop[1]': expected a string, but got an integer instead.",
        "stop[1]",
        "invalid_type",
    ),
    (
        {**HELLO, "service_tier": 1},
        "Invalid type for 'service_tier': expected one of 'auto', 'default', 'fast', "
        "'flex', 'priority', or 'scale', but got an integer instead.",
        "service_tier",
        "invalid_type",
    ),
    (
        {**HELLO, "verbosity": "loud"},
        "Invalid value: 'loud'. Supported values are: 'low', 'medium', and 'high'.",
        "verbosity",
        "invalid_value",
    ),
    (
        {**HELLO, "max_tokens": 5, "max_completion_tokens": 5},
        "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not "
        "supported.",
        "max_tokens",
        "invalid_parameter_combination",
    ),
    (
        {**HELLO, "stream_options": {"include_usage": True}},
        "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
        "stream_options",
        None,
    ),
    (
        {**HELLO, "stream": True, "stream_options": {"bogus": True}},
        "Unknown parameter: 'stream_options.bogus'.",
        "stream_options.bogus",
        "unknown_parameter",
    ),
    (
        {**HELLO, "top_logprobs": 2},
        "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.",
        "top_logprobs",
        None,
    ),
    (
        {**HELLO, "metadata": {"k": "v" * 600}},
        "Invalid 'metadata.k': string too long. Expected a string with maximum length "
        "512, but got a string with length 600 instead.",
        "metadata.k",
        "string_above_max_length",
    ),
    (
        {**HELLO, "metadata": {str(n): "v" for n in range(17)}},
        "Invalid 'metadata': too many properties. Expected an object with at most 16 "
        "properties, but got an object with 17 properties instead.",
        "metadata",
        "object_above_max_properties",
    ),
    (
        {**HELLO, "logit_bias": {"50256": 101}},
        "Invalid 'logit_bias.50256': integer above maximum value. Expected a value <= "
        "100, but got 101 instead.",
        "logit_bias.50256",
        "integer_above_max_value",
    ),
    (
        {**HELLO, "modalities": ["text", "audio"]},
        "Unsupported value: 'modalities' does not support 'audio' with this model.",
        "modalities",
        "unsupported_value",
    ),
    # messages
    (
        user(role="bogus"),
        "Invalid value: 'bogus'. Supported values are: 'system', 'assistant', 'user', "
        "'function', 'tool', and 'developer'.",
        "messages[0].role",
        "invalid_value",
    ),
    (
        {**HELLO, "messages": [{"content": "Hello"}]},
        "Missing required parameter: 'messages[0].role'.",
        "messages[0].role",
        "missing_required_parameter",
    ),
    (
        user(content=None),
        "Invalid value for 'content': expected a string, got null.",
        "messages.[0].content",
        None,
    ),
    (
        user(content=5),
        "Invalid type for 'messages[0].content': expected one of a string or array of "
        "objects, but got an integer instead.",
        "messages[0].content",
        "invalid_type",
    ),
    (
        user(content=[{"type": "text"}]),
        "Missing required parameter: 'messages[0].content[0].text'.",
        "messages[0].content[0].text",
        "missing_required_parameter",
    ),
    (
        user(role="system", content=[{"type": "image_url"}]),
        "Invalid value: 'image_url'. Supported values are: 'text'.",
        "messages[0].content[0].type",
        "invalid_value",
    ),
    # tools
    (
        {**HELLO, "tool_choice": "auto"},
        "Invalid value for 'tool_choice': 'tool_choice' is only allowed when 'tools' "
        "are specified.",
        "tool_choice",
        None,
    ),
    (
        {**HELLO, "parallel_tool_calls": False},
        "Invalid value for 'parallel_tool_calls': 'parallel_tool_calls' is only "
        "allowed when 'tools' are specified.",
        "parallel_tool_calls",
        None,
    ),
    (
        {**HELLO, "tools": [{"type": "function"}]},
        "Missing required parameter: 'tools[0].function'.",
        "tools[0].function",
        "missing_required_parameter",
    ),
    (
        with_function(name="no spaces"),
        "Invalid 'tools[0].function.name': string does not match pattern. Expected a "
        "string that matches the pattern '^[a-zA-Z0-9_-]+$'.",
        "tools[0].function.name",
        "invalid_value",
    ),
    (
        with_function(name=""),
        "Invalid 'tools[0].function.name': empty string. Expected a string with "
        "minimum length 1, but got an empty string instead.",
        "tools[0].function.name",
        "empty_string",
    ),
    (
        with_function(parameters={"type": "object"}),
        "Invalid schema for function 'search': In context=(), object schema missing "
        "properties.",
        "tools[0].function.parameters",
        "invalid_function_parameters",
    ),
    (
        {
            **HELLO,
            "tools": TOOLS,
            "tool_choice": {"type": "function", "function": {"name": "buy"}},
        },
        "Invalid value for 'function_call': no function named 'buy' was specified in "
        "the 'functions' parameter.",
        "function_call",
        None,
    ),
    (
        {**HELLO, "tools": TOOLS, "tool_choice": 5},
        "Invalid type for 'tool_choice': expected one of one of 'none', 'auto', or "
        "'required' or object, but got an integer instead.",
        "tool_choice",
        "invalid_type",
    ),
    # response_format
    (
        {**HELLO, "response_format": {"type": "bogus"}},
        "Invalid value: 'bogus'. Supported values are: 'json_object', 'json_schema', "
        "and 'text'.",
        "response_format.type",
        "invalid_value",
    ),
    (
        {**HELLO, "response_format": {"type": "json_object"}},
        "'messages' must contain the word 'json' in some form, to use "
        "'response_format' of type 'json_object'.",
        "messages",
        None,
    ),
    (
        {**HELLO, "response_format": {"type": "json_schema"}},
        "Missing required parameter: 'response_format.json_schema'.",
        "response_format.json_schema",
        "missing_required_parameter",
    ),
    (
        formatted(type="object", properties={}),
        "Invalid schema for response_format 'x': In context=(), 'additionalProperties' "
        "is required to be supplied and to be false.",
        "response_format",
        None,
    ),
    (
        formatted(
            type="object",
            properties={
                "list": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {"a": {"type": "string"}},
                        "additionalProperties": False,
                    },
                }
            },
            required=["list"],
            additionalProperties=False,
        ),
        "Invalid schema for response_format 'x': In context=('properties', 'list', "
        "'items'), 'required' is required to be supplied and to be an array including "
        "every key in properties. Missing 'a'.",
        "response_format",
        None,
    ),
]


def test_every_parameter_of_the_sdk_is_known() -> None:
    known = {*PARAMETERS, *NOT_HERE}
    assert CompletionCreateParamsStreaming.__annotations__.keys() <= known
    assert CompletionCreateParamsBase.__annotations__.keys() <= known


@pytest.mark.parametrize(("body", "message", "param", "code"), MALFORMED)
@pytest.mark.asyncio
async def test_a_malformed_request_is_refused_in_openais_words(
    body: Any, message: str, param: str | None, code: str | None
) -> None:
    reply = await send(body)
    assert reply.error == {
        "message": message,
        "type": "invalid_request_error",
        "param": param,
        "code": code,
    }
    assert reply.status == 400


def called(*ids: str) -> dict[str, Any]:
    function = {"name": "search", "arguments": "{}"}
    calls = [{"id": name, "type": "function", "function": function} for name in ids]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def answered(name: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": name, "content": "found"}


USER = {"role": "user", "content": "Hello"}
UNANSWERED = (
    "An assistant message with 'tool_calls' must be followed by tool messages "
    "responding to each 'tool_call_id'. The following tool_call_ids did not have "
    "response messages: "
)


@pytest.mark.parametrize(
    ("messages", "message", "param"),
    [
        ([USER, called("a")], f"{UNANSWERED}a", "messages"),
        ([USER, called("a"), USER], f"{UNANSWERED}a", "messages.[2].role"),
        (
            [USER, called("a", "b", "c"), answered("b"), USER],
            f"{UNANSWERED}a, c",
            "messages.[3].role",
        ),
        (
            [USER, called("a"), USER, answered("a")],
            f"{UNANSWERED}a",
            "messages.[2].role",
        ),
        (
            [USER, called("a"), called("b"), answered("a"), answered("b")],
            f"{UNANSWERED}a",
            "messages.[2].role",
        ),
        (
            [USER, answered("a")],
            "Invalid parameter: messages with role 'tool' must be a response to a "
            "preceeding message with 'tool_calls'.",
            "messages.[1].role",
        ),
        (
            [USER, called("a"), answered("z")],
            "Invalid parameter: 'tool_call_id' of 'z' not found in 'tool_calls' of "
            "previous message.",
            "messages.[2].tool_call_id",
        ),
        (
            [USER, called("a", "b"), answered("a"), answered("a")],
            "Invalid parameter: Duplicate value for 'tool_call_id' of 'a', in "
            "messages[2] and messages[3].",
            "messages.[3].tool_call_id",
        ),
    ],
)
@pytest.mark.asyncio
async def test_tool_calls_that_are_not_answered_in_order_are_refused(
    messages: list[Any], message: str, param: str
) -> None:
    reply = await send({"model": "any", "messages": messages})
    assert reply.status == 400
    assert reply.error["message"] == message
    assert reply.error["param"] == param


@pytest.mark.asyncio
async def test_tool_calls_may_be_answered_in_any_order_and_again_later() -> None:
    messages: list[Any] = [USER, called("a", "b"), answered("b"), answered("a"), USER]
    messages += [called("a"), answered("a")]
    async with (
        serve(Settings(latency=0)) as server,
        client_of(server) as client,
    ):
        answer = await client.chat.completions.create(model="any", messages=messages)
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic abc", "sk-123"])
@pytest.mark.asyncio
async def test_a_request_without_a_key_is_refused(header: str) -> None:
    reply = await send(HELLO, headers={"authorization": header})
    assert reply.status == 401
    assert reply.error["message"].startswith("You didn't provide an API key. You need")
    assert reply.error["code"] is None


@pytest.mark.asyncio
async def test_a_wrong_key_is_refused_and_shown_masked() -> None:
    key = "sk-proj-abcdefghijklmnop1234"
    headers = {"authorization": f"Bearer {key}"}
    reply = await send(HELLO, headers=headers, settings=Settings(api_key="right"))
    assert reply.status == 401
    assert reply.error["code"] == "invalid_api_key"
    assert reply.error["message"] == (
        "Incorrect API key provided: sk-proj-****************1234. You can find your "
        "API key at https://platform.openai.com/account/api-keys."
    )
    assert len(masked(key)) == len(key)


@pytest.mark.asyncio
async def test_the_key_is_checked_before_the_body() -> None:
    assert (await send(b"{", headers={})).status == 401


@pytest.mark.parametrize("path", ["/", "/chat", "/chat/completions/", "/embeddings"])
@pytest.mark.asyncio
async def test_an_unknown_route_is_refused(path: str) -> None:
    reply = await send(HELLO, path=path)
    assert reply.status == 404
    assert reply.error["message"] == f"Invalid URL (POST /v1{path})"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", CHAT, "POST"),
        ("DELETE", CHAT, "POST"),
        ("OPTIONS", CHAT, "POST"),
        ("POST", "/models", "GET"),
        ("PUT", "/models/any", "GET"),
    ],
)
@pytest.mark.asyncio
async def test_a_wrong_method_is_refused(method: str, path: str, allowed: str) -> None:
    reply = await send(HELLO, method=method, path=path)
    assert reply.status == 405
    assert reply.error["message"] == f"Only {allowed} requests are accepted."
    assert reply.error["code"] == "method_not_supported"
    assert reply.headers["allow"] == allowed


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"\xff\xfe", b"null", b"[]", b'"Hello"', b"{'a': 1}"),
        *(b"[" * 100_000, b'{"model": NaN}', b'{"model": ' + b"1" * 5000 + b"}"),
    ],
)
@pytest.mark.asyncio
async def test_a_body_that_is_not_a_json_object_is_refused(body: bytes) -> None:
    reply = await send(body)
    assert reply.status == 400
    assert reply.error["message"].startswith(
        "We could not parse the JSON body of your "
    )


@pytest.mark.asyncio
async def test_a_huge_body_is_refused() -> None:
    reply = await send(user(content="x" * 5_000_000))
    assert reply.status == 413


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.asyncio
async def test_an_unknown_model_is_refused_if_the_models_are_chosen(
    method: str,
) -> None:
    settings = Settings(latency=0, models=("small",))
    path = CHAT if method == "POST" else "/models/any"
    reply = await send(HELLO, method=method, path=path, settings=settings)
    assert reply.status == 404
    assert reply.error == {
        "message": "The model `any` does not exist or you do not have access to it.",
        "type": "invalid_request_error",
        "param": None,
        "code": "model_not_found",
    }


@pytest.mark.parametrize("path", ["/control/stats", "/control/reset", "/control/other"])
@pytest.mark.parametrize("secret", ["", "wrong", "s3cre", "s3crets", "\xff"])
@pytest.mark.asyncio
async def test_control_needs_the_secret(path: str, secret: str) -> None:
    reply = await send({}, path=path, headers={"x-control-secret": secret})
    assert reply.status == 403


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/control/other", b"", 404),
        ("POST", "/control/stats", b"", 405),
        ("GET", "/control/reset", b"", 405),
        ("POST", "/control/reset", b"{", 400),
        ("POST", "/control/reset", b"[]", 400),
        ("POST", "/control/reset", b'{"rpm": 0}', 400),
        ("POST", "/control/reset", b'{"colour": 1}', 400),
        ("POST", "/control/reset", b'{"faults": [{"kind": "rain"}]}', 400),
        ("POST", "/control/reset", b'{"faults": 1}', 400),
        ("POST", "/control/reset", b'{"models": 1}', 400),
    ],
)
@pytest.mark.asyncio
async def test_control_refuses_what_it_does_not_know(
    method: str, path: str, body: bytes, status: int
) -> None:
    headers = {"x-control-secret": "s3cret"}
    reply = await send(body, method=method, path=path, headers=headers)
    assert reply.status == status


@pytest.mark.asyncio
async def test_without_a_secret_there_is_no_control() -> None:
    async with serve() as server, ClientSession() as http:
        url = server.base_url.removesuffix("/v1") + "/control/stats"
        for headers in ({}, {"x-control-secret": ""}):
            async with http.get(url, headers=headers) as response:
                assert response.status == 404


@pytest.mark.asyncio
async def test_the_sdk_raises_its_own_error_for_each_status() -> None:
    settings = Settings(latency=0, api_key="right", models=("small",))
    async with (
        serve(settings) as server,
        client_of(server, api_key="wrong") as client,
    ):
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()
        client.api_key = "right"
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(**HELLO)
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(**{**HELLO, "n": 0})
    assert caught.value.param == "n"
    assert caught.value.code == "integer_below_min_value"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0, "0s"), (0.006, "6ms"), (0.0055, "6ms"), (1, "1s"), (8.64, "8.64s")),
        *((59.9999, "1m0s"), (73.588, "1m13.588s"), (360, "6m0s")),
    ],
)
def test_a_duration_is_written_as_openai_writes_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text
