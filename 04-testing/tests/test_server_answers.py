"""What the local model server says, read through the SDK in strict mode."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Literal

import pytest
from openai import AsyncOpenAI, DefaultAsyncHttpxClient
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel, Field

from racelab.server import Server, serve
from racelab.server.answers import latency_of
from racelab.server.completions import words
from racelab.server.schema_samples import Sample, Unfit
from racelab.settings import Settings

QUESTION = "What is the capital of France?"
FAST = Settings(latency=0, chunk_delay=0)


@asynccontextmanager
async def opened(
    settings: Settings = FAST, **options: Any
) -> AsyncIterator[tuple[Server, AsyncOpenAI]]:
    """Without certificates, whose loading would take longer than most tests."""
    plain = DefaultAsyncHttpxClient(verify=False, trust_env=False)
    options = {"api_key": "any", "max_retries": 0, "http_client": plain, **options}
    options["_strict_response_validation"] = True
    async with (
        serve(settings) as server,
        AsyncOpenAI(base_url=server.base_url, **options) as client,
    ):
        yield server, client


async def ask(client: AsyncOpenAI, question: Any = "Hello", **more: Any) -> Any:
    messages = [*more.pop("before", ()), {"role": "user", "content": question}]
    return await client.chat.completions.create(model="any", messages=messages, **more)


async def chunks_of(client: AsyncOpenAI, **more: Any) -> list[ChatCompletionChunk]:
    return [chunk async for chunk in await ask(client, QUESTION, stream=True, **more)]


def text_of(answer: ChatCompletion) -> str:
    content = answer.choices[0].message.content
    assert content is not None
    return content


def tool(name: str, **properties: object) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties}
    function = {"name": name, "parameters": parameters}
    return {"type": "function", "function": function}


SEARCH = tool("search", query={"type": "string"}, limit={"type": "integer"})
WEATHER = tool("get-weather", city={"type": "string"})


async def test_a_plain_answer_has_every_field_that_openai_sends() -> None:
    async with opened() as (_, client):
        answer = await ask(client, QUESTION)
    sent = answer.to_dict()
    assert set(sent) == {
        *("id", "object", "created", "model", "choices", "usage"),
        *("service_tier", "system_fingerprint"),
    }
    assert answer.id.startswith("chatcmpl-")
    assert len(answer.id) == len("chatcmpl-") + 29
    assert answer.model == "any"
    message = {"role": "assistant", "content": text_of(answer), "refusal": None}
    choice = {"index": 0, "message": {**message, "annotations": []}}
    assert sent["choices"] == [{**choice, "logprobs": None, "finish_reason": "stop"}]


async def test_same_question_gets_the_same_answer() -> None:
    async with opened() as (_, client):
        first, again = await ask(client, "Paris?"), await ask(client, "Paris?")
        other = await ask(client, "Rome?")
    assert text_of(first) == text_of(again) != text_of(other)
    assert "Paris?" in text_of(first)
    assert first.id != again.id


async def test_question_is_the_last_user_message() -> None:
    parts = [{"type": "text", "text": "Is it "}, {"type": "text", "text": "Rome?"}]
    before = [{"role": "system", "content": "Be brief."}]
    before += [{"role": "user", "content": "Paris?"}]
    before += [{"role": "assistant", "content": "No."}]
    async with opened() as (server, client):
        answer = await ask(client, parts, before=before)
        assert server.stats().answers == {"Is it Rome?": 1}
    assert "Is it Rome?" in text_of(answer)


def test_latency_depends_on_the_question_within_the_spread() -> None:
    settings = Settings(latency=0.1, spread=0.5)
    latencies = {q: latency_of(q, settings) for q in map(str, range(1000))}
    assert latencies == {q: latency_of(q, settings) for q in latencies}
    assert min(latencies.values()) >= 0.05
    assert max(latencies.values()) <= 0.15
    assert len(set(latencies.values())) == 1000
    assert sum(latencies.values()) / 1000 == pytest.approx(0.1, rel=0.05)
    assert latency_of("0", Settings(seed=1)) != latency_of("0", Settings(seed=0))


async def test_max_tokens_cuts_the_answer_and_says_so() -> None:
    async with opened() as (_, client):
        whole = await ask(client, QUESTION)
        for limit in ("max_tokens", "max_completion_tokens"):
            cut = await ask(client, QUESTION, **{limit: 5})
            assert text_of(cut) == text_of(whole)[:20]
            assert cut.choices[0].finish_reason == "length"
            assert cut.usage is not None
            assert cut.usage.completion_tokens == 5


async def test_a_stream_is_the_plain_answer_word_by_word() -> None:
    async with opened() as (server, client):
        plain = await ask(client, QUESTION)
        chunks = await chunks_of(client)
        assert server.stats().chunks_sent == len(chunks)
    first, *between, last = [chunk.choices[0] for chunk in chunks]
    assert first.delta.role == "assistant"
    assert (last.delta.content, last.finish_reason) == (None, "stop")
    assert {choice.finish_reason for choice in (first, *between)} == {None}
    pieces = [choice.delta.content or "" for choice in between]
    assert pieces == words(text_of(plain))
    assert len({(chunk.id, chunk.created) for chunk in chunks}) == 1
    assert all("usage" not in chunk.to_dict() for chunk in chunks)


async def test_usage_of_a_stream_comes_last_if_asked_for() -> None:
    async with opened() as (server, client):
        usage = {"include_usage": True}
        *chunks, last = await chunks_of(client, stream_options=usage)
        assert all(chunk.to_dict()["usage"] is None for chunk in chunks)
        assert last.choices == []
        assert last.usage is not None
        assert last.usage.total_tokens == server.stats().tokens_billed
        assert server.stats().chunks_sent == len(chunks)


async def test_a_stream_of_several_answers_keeps_them_apart() -> None:
    async with opened() as (server, client):
        plain = await ask(client, QUESTION, n=3)
        assert plain.usage.total_tokens == server.stats().tokens_billed
        chunks = await chunks_of(client, n=3)
    texts = ["", "", ""]
    for chunk in chunks:
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in plain.choices]


@pytest.mark.parametrize(
    ("question", "options", "called"),
    [
        ("Use search, please", {}, ["search"]),
        ("Use get-weather and search", {}, ["search", "get-weather"]),
        ("Use get-weather and search", {"parallel_tool_calls": False}, ["search"]),
        ("Do some research", {}, []),
        ("Do a web-search", {}, []),
        ("Hello", {"tool_choice": "auto"}, []),
        ("Hello", {"tool_choice": "required"}, ["search"]),
        ("get-weather now", {"tool_choice": "required"}, ["get-weather"]),
        ("Use search, please", {"tool_choice": "none"}, []),
        (
            "Hello",
            {"tool_choice": {"type": "function", "function": {"name": "get-weather"}}},
            ["get-weather"],
        ),
    ],
)
async def test_tool_choice_or_question_decides_which_tools_are_called(
    question: str, options: dict[str, Any], called: list[str]
) -> None:
    async with opened() as (_, client):
        answer = await ask(client, question, tools=[SEARCH, WEATHER], **options)
    choice = answer.choices[0]
    calls = choice.message.tool_calls or []
    assert [call.to_dict()["function"]["name"] for call in calls] == called
    assert choice.finish_reason == ("tool_calls" if called else "stop")
    assert (choice.message.content is None) == bool(called)


async def test_after_the_tools_have_answered_the_model_speaks() -> None:
    async with opened() as (_, client):
        question = "Use search and get-weather"
        answer = await ask(client, question, tools=[SEARCH, WEATHER])
        message = answer.choices[0].message
        messages: list[Any] = [
            {"role": "user", "content": question},
            message.to_dict(),
            *(
                {"role": "tool", "tool_call_id": call.id, "content": f"result {number}"}
                for number, call in enumerate(message.tool_calls or (), 1)
            ),
        ]
        last = await client.chat.completions.create(
            model="any", messages=messages, tools=[SEARCH, WEATHER]
        )
    assert last.choices[0].finish_reason == "stop"
    assert text_of(last).startswith(f'On "{question}": ')
    assert "result 1; result 2" in text_of(last)


async def test_every_tool_call_has_an_id_of_its_own() -> None:
    question, ids = "search and get-weather", []
    messages: list[Any] = [{"role": "user", "content": question}]
    async with opened() as (_, client):
        for _ in range(3):
            answer = await client.chat.completions.create(
                model="any", messages=messages, tools=[SEARCH, WEATHER], n=2
            )
            calls = [
                c for choice in answer.choices for c in choice.message.tool_calls or ()
            ]
            ids += [call.id for call in calls]
            messages.append(answer.choices[0].message.to_dict())
            messages += [
                {"role": "tool", "tool_call_id": call.id, "content": "done"}
                for call in answer.choices[0].message.tool_calls or ()
            ]
            messages.append({"role": "user", "content": question})
    assert len(ids) == len(set(ids)) == 12


async def test_the_sdk_puts_streamed_tool_calls_together() -> None:
    async with opened() as (_, client):
        question = "search and get-weather"
        plain = await ask(client, question, tools=[SEARCH, WEATHER])
        async with client.chat.completions.stream(
            model="any",
            messages=[{"role": "user", "content": question}],
            tools=[SEARCH, WEATHER],
        ) as stream:
            final = await stream.get_final_completion()
    assert final.choices[0].finish_reason == "tool_calls"
    streamed = [call.to_dict() for call in final.choices[0].message.tool_calls or ()]
    for call in streamed:
        call["function"].pop("parsed_arguments", None)
        call.pop("index", None)
    sent = [call.to_dict() for call in plain.choices[0].message.tool_calls or ()]
    assert streamed == sent


class Node(BaseModel):
    name: str
    child: "Node | None"
    others: list["Node"]


class Book(BaseModel):
    kind: Literal["book"]
    title: str


class Report(BaseModel):
    title: str
    score: float = Field(ge=0, le=1)
    stars: int = Field(gt=0, lt=6)
    good: bool
    maybe: str | None
    work: Book | Node
    pages: list[Book] = Field(min_length=1, max_length=3)
    tree: Node
    moment: datetime


async def test_a_structured_answer_fits_its_pydantic_model() -> None:
    async with opened() as (_, client):
        for question in ("Paris?", "Rome?", "Oslo?"):
            answer = await client.chat.completions.parse(
                model="any",
                messages=[{"role": "user", "content": question}],
                response_format=Report,
            )
            report = answer.choices[0].message.parsed
            assert report is not None
            assert report.title == question


async def test_a_json_object_is_a_json_object() -> None:
    async with opened() as (_, client):
        answer = await ask(
            client, "Paris as json", response_format={"type": "json_object"}
        )
    assert json.loads(text_of(answer))["question"] == "Paris as json"


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"const": None}, None),
        ({"enum": [7]}, 7),
        ({"type": ["null", "boolean"], "enum": [True]}, True),
        ({"type": ["null", "string"]}, "Paris"),
        ({"type": ["null"]}, None),
        ({"type": "string", "minLength": 8}, "Paris..."),
        ({"type": "string", "maxLength": 2}, "Pa"),
        ({"type": "string", "format": "date"}, "2025-01-01"),
        ({"type": "integer", "minimum": 5, "maximum": 5}, 5),
        ({"type": "integer", "exclusiveMinimum": 5, "maximum": 6}, 6),
        ({"type": "integer", "minimum": -6, "exclusiveMaximum": -5}, -6),
        ({"type": "integer", "minimum": 1.2, "maximum": 2.9}, 2),
        ({"type": "integer", "minimum": True, "maximum": 0}, 0),
        ({"type": "number", "minimum": 2.5, "maximum": 2.5}, 2.5),
        ({"type": "number", "minimum": -9.5, "exclusiveMaximum": 0}, -0.125),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 0.2}, 0.125),
        ({"type": "array", "items": {"type": "null"}, "minItems": 3}, [None] * 3),
        ({"type": "array", "items": {"const": 1}, "maxItems": 1}, [1]),
        ({"type": "array", "items": {"type": "string"}}, ["Paris", "Paris (2)"]),
        ({"type": "array", "items": {"$ref": "#"}}, [[], []]),
        ({"anyOf": [{"type": "null"}, {"const": 1}]}, 1),
        ({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, None),
        ({"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"const": 1}}}, 1),
        ({"$ref": "#/definitions/a", "definitions": {"a": {"const": 1}}}, 1),
        ({"properties": {"a": {"const": 1}}}, {"a": 1}),
        ({"type": "object", "required": ["a", 5]}, {"a": "Paris"}),
        ({"type": "object", "properties": {"next": {"$ref": "#"}}}, {"next": {}}),
        (True, "Paris"),
    ],
)
def test_sample_fits_its_schema(schema: Any, value: object) -> None:
    assert Sample(schema, "Paris", "seed").make(schema) == value


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "animal"},
        {"type": "integer", "minimum": 2, "maximum": 1},
        {"type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 2},
        {"$ref": "#/$defs/missing"},
        {"$ref": "#"},
        {"type": "object", "required": ["a"], "properties": {"a": {"$ref": "#"}}},
        {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
        {"anyOf": [{"$ref": "#"}]},
    ],
)
def test_schema_without_a_value_raises(schema: Any) -> None:
    with pytest.raises(Unfit):
        Sample(schema, "Paris", "seed").make(schema)


def test_samples_vary_with_the_seed() -> None:
    for kind, high in (("integer", 9), ("number", 1.125), ("boolean", True)):
        schema = {"type": kind}
        values = [Sample(schema, "Paris", str(seed)).make(schema) for seed in range(99)]
        assert (min(values), max(values)) == (0, high)
        several = {"type": "array", "items": schema, "minItems": 99}
        assert set(Sample(several, "Paris", "0").make(several)) == set(values)


@pytest.mark.parametrize("models", [(), ("small", "large")])
async def test_models_are_listed(models: tuple[str, ...]) -> None:
    async with opened(Settings(models=models)) as (_, client):
        listed = [model.id async for model in client.models.list()]
    assert listed == [*(models or ("racelab-local",))]
