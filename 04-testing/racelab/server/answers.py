"""What the local model says: the same question always gets the same answer.

Nothing here is intelligent and nothing is random. Everything is drawn from a hash of
the seed and the question, so two runs, two machines and two Pythons agree.
"""

import json
import re
from itertools import takewhile

from racelab.seeds import digest_of, fraction_of
from racelab.server.chat_requests import (
    Json,
    functions_of,
    part,
    token_limit,
    whole_number,
)
from racelab.server.completions import Choice, Completion
from racelab.server.errors import ApiError
from racelab.server.schema_samples import LARGEST, Sample
from racelab.settings import Settings

MOST_CHOICES = 128  # answers to one request, as at OpenAI
QUOTED = 10_000  # characters of a question that all choices together repeat
REMARKS = (
    "two sources agree",
    "one source disagrees",
    "the evidence is thin",
    "the figures are from last year",
    "the first report was wrong",
    "nobody has measured it yet",
)


def latency_of(question: str, settings: Settings) -> float:
    """Return the seconds until the answer to this question."""
    place = 2 * fraction_of(settings.seed, "latency", question) - 1  # from -1 to 1
    return settings.latency * (1 + settings.spread * place)


def answer_to(body: Json, seed: int) -> Completion:
    """Return the answer to a request that `chat_request` has let through.

    Raises a 400 if no value fits a schema in the request. The work is bounded, because
    more choices share the same number of characters.
    """
    question = question_of(body["messages"])
    maker, digest = _Maker(body, question, seed), digest_of(seed, question)
    try:
        choices = [maker.choice(index) for index in range(maker.count)]
        prompt = prompt_tokens(body)
    except (ValueError, ArithmeticError, RecursionError) as error:
        raise ApiError(400, f"Invalid schema: {error}.") from None
    said = (choice.content or json.dumps(choice.tool_calls) for choice in choices)
    tokens = sum(map(count_tokens, said))
    return Completion(question, body["model"], digest, choices, prompt, tokens)


class _Maker:
    """The choices of one answer. `values` is the number of texts that they need."""

    def __init__(self, body: Json, question: str, seed: int) -> None:
        self.body, self.seed = body, seed
        self.functions = chosen_functions(body, question)
        self.count = whole_number(body, "n", MOST_CHOICES) or 1
        self.values = self.count * max(1, len(self.functions))
        self.quoted = question[: QUOTED // self.values]
        last = list(
            takewhile(lambda m: m["role"] == "tool", reversed(body["messages"]))
        )
        results = "; ".join(text_of(message) for message in reversed(last))
        self.results = results[: QUOTED // self.values]

    def choice(self, index: int) -> Choice:
        if self.functions:
            calls = [self.call(index, place) for place in range(len(self.functions))]
            return Choice(None, calls, "tool_calls")
        content, reason = self.content(index), "stop"
        limit = token_limit(self.body)
        if limit is not None and count_tokens(content) > limit:
            content, reason = content[: 4 * limit], "length"
        return Choice(content, [], reason)

    def content(self, index: int) -> str:
        wanted = part(self.body, "response_format", dict)
        if wanted.get("type") == "json_schema":
            schema = part(part(wanted, "json_schema", dict), "schema", dict)
            return self.sample(schema, f"{self.seed}:{index}")
        drawn = int(digest_of(self.seed, self.quoted, index)[:8], 16)
        remark = REMARKS[drawn % len(REMARKS)]
        if wanted.get("type") == "json_object":
            value = {"question": self.quoted, "answer": remark}
            return json.dumps(value, ensure_ascii=False)
        said = f" (the tools said: {self.results})" if self.results else ""
        return f'On "{self.quoted}": {remark}{said}. This is a canned local answer.'

    def call(self, index: int, place: int) -> Json:
        """Return a tool call, whose id differs by choice, place and turn."""
        function, turn = self.functions[place], len(self.body["messages"])
        name = function["name"]
        identity = digest_of(self.seed, self.quoted, name, index, place, turn)[:24]
        arguments = self.sample(part(function, "parameters", dict), str(self.seed))
        called = {"name": name, "arguments": arguments}
        return {"id": f"call_{identity}", "type": "function", "function": called}

    def sample(self, schema: Json, seed: str) -> str:
        schema = schema or {"type": "object"}
        value = Sample(schema, self.quoted, seed, LARGEST // self.values).make(schema)
        return json.dumps(value, ensure_ascii=False)


def chosen_functions(body: Json, question: str) -> list[Json]:
    """Return the functions that this turn calls, in the order of `tools`.

    A function is called because `tool_choice` says so, or because the question, being
    the last message, names it as a whole word.
    """
    functions, choice = functions_of(body), body.get("tool_choice")
    if not functions or choice == "none":
        return []
    if isinstance(choice, dict):
        name = part(choice, "function", dict).get("name")
        return [f for f in functions if f["name"] == name][:1]
    asked = body["messages"][-1]["role"] == "user" or choice == "required"
    named = set(re.findall(r"[\w-]+", question)) if asked else set()
    called = [f for f in functions if f["name"] in named]
    if choice == "required":
        called = called or functions[:1]
    return called[:1] if body.get("parallel_tool_calls") is False else called


def question_of(messages: list[Json]) -> str:
    """Return the text of the last user message, or else of the last message."""
    asked = (m for m in reversed(messages) if m["role"] == "user")
    return text_of(next(asked, messages[-1]))


def text_of(message: Json) -> str:
    """Return the text of a message, and of its parts that have any."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = part(message, "content", list)
    return "".join(part(p, "text", str) for p in parts if isinstance(p, dict))


def count_tokens(text: str) -> int:
    """Return a token for four characters, about what English text has at OpenAI."""
    return (len(text) + 3) // 4


def prompt_tokens(body: Json) -> int:
    """Return four for each message, plus its text, plus the tools as JSON."""
    tokens = sum(4 + count_tokens(text_of(m)) for m in body["messages"])
    tools = body.get("tools")
    return tokens + count_tokens(json.dumps(tools)) if tools else tokens
