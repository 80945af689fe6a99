"""The shape of an answer: the JSON of a completion, and the chunks of a stream."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

FINGERPRINT = "fp_10ca110ca1"


@dataclass(slots=True)
class Choice:
    """One of the `n` answers to a question: text, or calls of tools."""

    content: str | None
    tool_calls: list[dict[str, Any]]
    finish_reason: str
    logprobs: dict[str, Any] | None


@dataclass(slots=True)
class Answer:
    question: str
    model: str
    digest: str  # of the seed and the question, hexadecimal
    choices: list[Choice]
    prompt_tokens: int
    completion_tokens: int

    def usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }

    def frame(self, kind: str, call: int, created: int) -> dict[str, Any]:
        """The fields that an answer and each chunk of a stream have in common."""
        return {
            "id": f"chatcmpl-{self.digest[:21]}{call:08d}",
            "object": kind,
            "created": created,
            "model": self.model,
            "service_tier": "default",
            "system_fingerprint": FINGERPRINT,
        }

    def body(self, call: int, created: int) -> dict[str, Any]:
        return {
            **self.frame("chat.completion", call, created),
            "choices": [
                {
                    "index": index,
                    "message": _message(choice),
                    "logprobs": choice.logprobs,
                    "finish_reason": choice.finish_reason,
                }
                for index, choice in enumerate(self.choices)
            ],
            "usage": self.usage(),
        }

    def chunks(self) -> Iterator[dict[str, Any]]:
        """The `choices` entry of each chunk: first the role, last the reason."""
        for index, choice in enumerate(self.choices):
            for delta, logprobs in _deltas(choice):
                yield _chunk(index, delta, logprobs, None)
            yield _chunk(index, {}, None, choice.finish_reason)


def _message(choice: Choice) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": choice.content,
        "refusal": None,
        "annotations": [],
    }
    if choice.tool_calls:
        message["tool_calls"] = choice.tool_calls
    return message


def _chunk(
    index: int, delta: dict[str, Any], logprobs: Any, finish_reason: str | None
) -> dict[str, Any]:
    return {
        "index": index,
        "delta": delta,
        "logprobs": logprobs,
        "finish_reason": finish_reason,
    }


def _deltas(choice: Choice) -> Iterator[tuple[dict[str, Any], Any]]:
    start = None if choice.content is None else ""
    yield {"role": "assistant", "content": start, "refusal": None}, None
    tokens = iter(choice.logprobs["content"] if choice.logprobs else ())
    for word in words(choice.content or ""):
        token = next(tokens, None)
        yield (
            {"content": word},
            {"content": [token], "refusal": None} if token else None,
        )
    for index, call in enumerate(choice.tool_calls):
        empty = {"name": call["function"]["name"], "arguments": ""}
        yield {"tool_calls": [{"index": index, **call, "function": empty}]}, None
        for word in words(call["function"]["arguments"]):
            piece = {"index": index, "function": {"arguments": word}}
            yield {"tool_calls": [piece]}, None


def words(text: str) -> list[str]:
    """The pieces of a stream: each word with the space before it."""
    first, *rest = text.split(" ")
    return [piece for piece in (first, *(f" {word}" for word in rest)) if piece]
