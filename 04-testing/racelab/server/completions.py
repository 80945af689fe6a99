"""The shape of an answer: the JSON of a completion, and the chunks of a stream."""

from collections.abc import Iterator
from dataclasses import dataclass

from racelab.server.chat_requests import Json


@dataclass(slots=True)
class Choice:
    """One of the `n` answers to a question: text, or calls of tools."""

    content: str | None
    tool_calls: list[Json]
    finish_reason: str


@dataclass(slots=True)
class Completion:
    """All that is said to one request."""

    question: str
    model: str
    digest: str  # of the seed and the question, hexadecimal
    choices: list[Choice]
    prompt_tokens: int
    completion_tokens: int

    def usage(self) -> Json:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }

    def frame(self, kind: str, call: int, created: int) -> Json:
        """Return the fields that an answer and each chunk of a stream share."""
        return {
            "id": f"chatcmpl-{self.digest[:21]}{call:08d}",
            "object": kind,
            "created": created,
            "model": self.model,
            "service_tier": "default",
            "system_fingerprint": "fp_10ca110ca1",
        }

    def body(self, call: int, created: int) -> Json:
        choices = []
        for index, choice in enumerate(self.choices):
            message: Json = {"role": "assistant", "content": choice.content}
            message |= {"refusal": None, "annotations": []}
            if choice.tool_calls:
                message["tool_calls"] = choice.tool_calls
            end = {"logprobs": None, "finish_reason": choice.finish_reason}
            choices.append({"index": index, "message": message, **end})
        frame = self.frame("chat.completion", call, created)
        return {**frame, "choices": choices, "usage": self.usage()}

    def chunks(self) -> Iterator[Json]:
        """Return the `choices` entry of each chunk: first the role, last the reason."""
        for index, choice in enumerate(self.choices):
            both = {"index": index, "logprobs": None, "finish_reason": None}
            for delta in _deltas(choice):
                yield {**both, "delta": delta}
            yield {**both, "delta": {}, "finish_reason": choice.finish_reason}


def _deltas(choice: Choice) -> Iterator[Json]:
    start = None if choice.content is None else ""
    yield {"role": "assistant", "content": start, "refusal": None}
    for word in words(choice.content or ""):
        yield {"content": word}
    for index, call in enumerate(choice.tool_calls):
        empty = {"name": call["function"]["name"], "arguments": ""}
        yield {"tool_calls": [{"index": index, **call, "function": empty}]}
        for word in words(call["function"]["arguments"]):
            yield {"tool_calls": [{"index": index, "function": {"arguments": word}}]}


def words(text: str) -> list[str]:
    """Return the pieces of a stream: each word with the space before it."""
    first, *rest = text.split(" ")
    return [piece for piece in (first, *(f" {word}" for word in rest)) if piece]
