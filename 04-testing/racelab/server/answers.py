"""What the local model says: the same question always gets the same answer.

Nothing here is intelligent and nothing is random. Everything is drawn from a hash of
the seed and the question, so two runs, two machines and two Pythons agree.
"""

import json
import re

from racelab.seeds import digest_of, fraction_of
from racelab.server.chat_requests import functions_of, part, token_limit, whole_number
from racelab.server.completions import Choice, Completion, Json, words
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
    tokens = sum(count_tokens(choice.content or "") for choice in choices)
    tokens += sum(_cost(call) for choice in choices for call in choice.tool_calls)
    return Completion(question, body["model"], digest, choices, prompt, tokens)


class _Maker:
    """The choices of one answer. `values` is the number of texts that they need."""

    def __init__(self, body: Json, question: str, seed: int) -> None:
        self.body, self.seed = body, seed
        self.functions = chosen_functions(body, question)
        self.count = whole_number(body, "n", MOST_CHOICES) or 1
        self.values = self.count * max(1, len(self.functions))
        self.quoted = question[: QUOTED // self.values]
        self.results = _tool_results(body["messages"])[: QUOTED // self.values]

    def choice(self, index: int) -> Choice:
        limit = token_limit(self.body)
        if self.functions:
            calls = [self.call(index, place) for place in range(len(self.functions))]
            cut = limit is not None and _cut_calls(calls, limit)
            return Choice(None, calls, "length" if cut else "tool_calls")
        content, reason = self.content(index), "stop"
        stop = self.body.get("stop")
        for end in (stop if isinstance(stop, list) else [stop])[:4]:
            if end and isinstance(end, str):
                content = content.partition(end)[0]
        if limit is not None and count_tokens(content) > limit:
            content, reason = content[: 4 * limit], "length"
        wanted = self.body.get("logprobs") is True
        top = bool(self.body.get("top_logprobs"))
        return Choice(content, [], reason, logprobs(content, top) if wanted else None)

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


def logprobs(content: str, top: bool) -> Json:
    """Return an entry for each word. The model has no doubts: each is certain."""
    tokens = []
    for word in words(content):
        encoded = list(word.encode(errors="replace"))
        token = {"token": word, "logprob": 0.0, "bytes": encoded}
        tokens.append({**token, "top_logprobs": [token] if top else []})
    return {"content": tokens, "refusal": None}


def _cost(call: Json) -> int:
    function = call["function"]
    return count_tokens(function["name"]) + count_tokens(function["arguments"])


def _cut_calls(calls: list[Json], limit: int) -> bool:
    """Cut the arguments of the call in which the limit falls, and drop later calls."""
    for number, call in enumerate(calls):
        used, function = _cost(call), call["function"]
        if used > limit:
            room = max(0, limit - count_tokens(function["name"]))
            function["arguments"] = function["arguments"][: 4 * room]
            del calls[number + 1 :]
            return True
        limit -= used
    return False


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


def _tool_results(messages: list[Json]) -> str:
    """Return the texts of the tool messages after the last other message."""
    results: list[str] = []
    for message in reversed(messages):
        if message["role"] != "tool":
            break
        results.append(text_of(message))
    return "; ".join(reversed(results))


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
