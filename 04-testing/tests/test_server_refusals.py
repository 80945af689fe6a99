"""What the local model server refuses, with OpenAI's status, body and wording."""

import json
from collections.abc import Mapping
from io import BytesIO
from typing import Any, NamedTuple

import openai
import pytest
from aiohttp import ClientSession
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from racelab.server import Server, serve
from racelab.server.errors import duration
from racelab.settings import Settings

CHAT = "/chat/completions"
KEY = {"authorization": "Bearer any"}
HELLO: dict[str, Any] = {
    "model": "any",
    "messages": [{"role": "user", "content": "Hello"}],
}


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


MALFORMED: list[tuple[Any, str, str | None, str | None]] = [
    (
        {"messages": HELLO["messages"]},
        "you must provide a model parameter",
        None,
        None,
    ),
    ({**HELLO, "model": 5}, "you must provide a model parameter", None, None),
    (
        {"model": "any", "messages": None},
        "Missing required parameter: 'messages'.",
        "messages",
        "missing_required_parameter",
    ),
    *(
        (
            {**HELLO, "messages": messages},
            "Invalid 'messages': expected an array of at least one object.",
            "messages",
            "invalid_type",
        )
        for messages in ("Hello", [], {"role": "user"})
    ),
    *(
        (
            {**HELLO, "messages": [*HELLO["messages"], message]},
            "Invalid 'messages[1]': expected an object with a 'role'.",
            "messages[1]",
            "invalid_type",
        )
        for message in ("Hello", {"content": "Hello"}, {"role": 5})
    ),
]


@pytest.mark.parametrize(("body", "message", "param", "code"), MALFORMED)
async def test_request_without_model_or_messages_gets_400(
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


SEARCH = {"type": "function", "function": {"name": "search"}}
HUGE = 10**400


@pytest.mark.parametrize(
    "options",
    [
        {"tools": [], "audio": None, "moderation": None, "functions": [{"name": "f"}]},
        {"frobnicate": 1, "temperature": "hot", "metadata": 5, "logit_bias": [1]},
        {"tool_choice": "auto", "parallel_tool_calls": False, "top_logprobs": 2},
        {"tools": [None, 5, {}, {"function": {"name": 5}}, SEARCH], "tool_choice": 5},
        {"tools": SEARCH, "tool_choice": {"type": "function"}},
        {"response_format": {"type": "json_object"}, "stop": {"a": 1}},
        {"response_format": "json", "stop": [None, 5, "", "never", "said"]},
        {"response_format": {"type": "json_schema"}, "stream_options": [1]},
        {"max_tokens": HUGE, "seed": -HUGE, "top_logprobs": HUGE, "logprobs": True},
        {"max_tokens": 0, "max_completion_tokens": -1, "n": 0, "stream": "no"},
        {"max_tokens": 1.5, "max_completion_tokens": True, "n": "2", "stream": 1},
        {"n": None, "stop": None, "tools": None, "response_format": None},
    ],
)
async def test_unknown_null_and_wrong_parameters_are_accepted(
    options: dict[str, Any],
) -> None:
    async with (
        serve(Settings(latency=0)) as server,
        client_of(server) as client,
    ):
        answer = await client.chat.completions.create(**HELLO, extra_body=options)
    (choice,) = answer.choices
    assert choice.finish_reason == "stop"
    assert choice.message.content


@pytest.mark.parametrize(
    "content", [None, 5, True, {}, [], [None, 5, "Hi", {"text": 5}, {"type": "text"}]]
)
async def test_message_without_text_is_an_empty_question(content: Any) -> None:
    async with (
        serve(Settings(latency=0)) as server,
        client_of(server) as client,
    ):
        messages: Any = [{"role": "user", "content": content}]
        answer = await client.chat.completions.create(model="any", messages=messages)
        assert server.stats().answers == {"": 1}
    assert (answer.choices[0].message.content or "").startswith('On "": ')


async def test_too_many_tokens_for_the_bucket_get_429() -> None:
    reply = await send({**HELLO, "max_tokens": HUGE}, settings=Settings(tpm=60))
    assert reply.status == 429
    assert reply.error["message"].startswith("Request too large for any")


async def test_long_model_name_is_unknown() -> None:
    assert (await send({**HELLO, "model": "m" * 257})).status == 404


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
            [USER, called("a"), {"role": "tool", "content": "found"}],
            "Invalid parameter: 'tool_call_id' of 'None' not found in 'tool_calls' of "
            "previous message.",
            "messages.[2].tool_call_id",
        ),
        (
            [USER, called("a"), {"role": "tool", "tool_call_id": ["a"]}],
            "Invalid parameter: 'tool_call_id' of '['a']' not found in 'tool_calls' of "
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
async def test_tool_calls_out_of_order_get_400(
    messages: list[Any], message: str, param: str
) -> None:
    reply = await send({"model": "any", "messages": messages})
    assert reply.status == 400
    assert reply.error["message"] == message
    assert reply.error["param"] == param


async def test_results_of_one_message_come_in_any_order() -> None:
    messages: list[Any] = [USER, called("a", "b"), answered("b"), answered("a"), USER]
    messages += [called("a"), answered("a"), {**called("z"), "role": "user"}]
    messages += [{"role": "assistant", "tool_calls": [5, {"id": 5}]}]
    messages += [{"role": "assistant", "content": "Hi", "tool_calls": 5}, USER]
    async with (
        serve(Settings(latency=0)) as server,
        client_of(server) as client,
    ):
        answer = await client.chat.completions.create(model="any", messages=messages)
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic abc", "sk-123"])
async def test_a_request_without_a_key_is_refused(header: str) -> None:
    reply = await send(HELLO, headers={"authorization": header})
    assert reply.status == 401
    assert reply.error["message"].startswith("You didn't provide an API key. You need")
    assert reply.error["code"] is None


@pytest.mark.parametrize(
    ("key", "masked"),
    [
        ("sk-proj-abcdefghijklmnop1234", "sk-proj-****************1234"),
        ("short-key", "short-key"),
        ("key", "key"),
    ],
)
async def test_wrong_key_is_refused_and_shown_masked(key: str, masked: str) -> None:
    headers = {"authorization": f"Bearer {key}"}
    reply = await send(HELLO, headers=headers, settings=Settings(api_key="right"))
    assert reply.status == 401
    assert reply.error["code"] == "invalid_api_key"
    assert reply.error["message"] == (
        f"Incorrect API key provided: {masked}. You can find your "
        "API key at https://platform.openai.com/account/api-keys."
    )


async def test_the_key_is_checked_before_the_body() -> None:
    assert (await send(b"{", headers={})).status == 401


@pytest.mark.parametrize("path", ["/", "/chat", "/chat/completions/", "/embeddings"])
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
async def test_body_without_a_json_object_gets_400(body: bytes) -> None:
    reply = await send(body)
    assert reply.status == 400
    assert reply.error["message"].startswith(
        "We could not parse the JSON body of your "
    )


async def test_a_huge_body_is_refused() -> None:
    reply = await send({**HELLO, "frobnicate": "x" * 5_000_000})
    assert reply.status == 413


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_unknown_model_gets_404_if_models_are_set(
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
async def test_control_refuses_what_it_does_not_know(
    method: str, path: str, body: bytes, status: int
) -> None:
    headers = {"x-control-secret": "s3cret"}
    reply = await send(body, method=method, path=path, headers=headers)
    assert reply.status == status


async def test_without_a_secret_there_is_no_control() -> None:
    async with serve() as server, ClientSession() as http:
        url = server.base_url.removesuffix("/v1") + "/control/stats"
        for headers in ({}, {"x-control-secret": ""}):
            async with http.get(url, headers=headers) as response:
                assert response.status == 404


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
            await client.chat.completions.create(**{**HELLO, "messages": []})
    assert (caught.value.param, caught.value.code) == ("messages", "invalid_type")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0, "0s"), (0.006, "6ms"), (0.0055, "6ms"), (1, "1s"), (8.64, "8.64s")),
        *((59.9999, "1m0s"), (73.588, "1m13.588s"), (360, "6m0s")),
    ],
)
def test_a_duration_is_written_as_openai_writes_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text
