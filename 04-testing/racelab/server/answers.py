"""What the local model says: the same question always gets the same answer.

Nothing here is intelligent and nothing is random. Everything is drawn from a hash of
the seed and the question, so two runs, two machines and two Pythons agree.
"""

import json
import re
from typing import Any

from racelab.seeds import digest_of, fraction_of
from racelab.server.completions import Answer, Choice, words
from racelab.server.errors import bad_request
from racelab.server.schema_samples import instance
from racelab.settings import Settings

QUOTED = 10_000  # characters of a question, at most, that its answer repeats
REMARKS = (
    "two sources agree",
    "one source disagrees",
    "the evidence is thin",
    "the figures are from last year",
    "the first report was wrong",
    "nobody has measured it yet",
)


def latency_of(question: str, settings: Settings) -> float:
    """Seconds until the answer to this question."""
    place = 2 * fraction_of(settings.seed, "latency", question) - 1  # from -1 to 1
    return settings.latency * (1 + settings.spread * place)


def answer_to(body: dict[str, Any], seed: int) -> Answer:
    """The answer to a chat request that `parameters` has let through.

    Raises a Refusal when nothing fits a schema in the request.
    """
    question = question_of(body["messages"])
    try:
        choices = [_choice(body, question, seed, i) for i in range(body.get("n") or 1)]
        prompt = prompt_tokens(body)
    except (ValueError, ArithmeticError, RecursionError) as error:
        raise bad_request(f"Invalid schema: {error}.") from None
    completion = sum(
        count_tokens(choice.content or "") + sum(map(_call_tokens, choice.tool_calls))
        for choice in choices
    )
    digest = digest_of(seed, question)
    return Answer(question, body["model"], digest, choices, prompt, completion)


def _choice(body: dict[str, Any], question: str, seed: int, index: int) -> Choice:
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    chosen = chosen_tools(body, question)
    if chosen:
        calls = [
            _tool_call(function, question, seed, (index, number, len(body["messages"])))
            for number, function in enumerate(chosen)
        ]
        cut = limit is not None and _cut_calls(calls, limit)
        return Choice(None, calls, "length" if cut else "tool_calls", None)
    content = _content(body, question, seed, index)
    for stop in filter(None, _as_list(body.get("stop"))):
        content = content.partition(stop)[0]
    reason = "stop"
    if limit is not None and count_tokens(content) > limit:
        content, reason = content[: 4 * limit], "length"
    logprobs = _logprobs(content, body) if body.get("logprobs") else None
    return Choice(content, [], reason, logprobs)


def _content(body: dict[str, Any], question: str, seed: int, index: int) -> str:
    question = question[:QUOTED]
    wanted = body.get("response_format") or {"type": "text"}
    if wanted["type"] == "json_schema":
        schema = wanted["json_schema"].get("schema") or {"type": "object"}
        value = instance(schema, question, f"{seed}:{index}")
        return json.dumps(value, ensure_ascii=False)
    remark = REMARKS[int(digest_of(seed, question, index)[:8], 16) % len(REMARKS)]
    if wanted["type"] == "json_object":
        value = {"question": question, "answer": remark}
        return json.dumps(value, ensure_ascii=False)
    results = "; ".join(_tool_results(body["messages"]))
    said = f" (the tools said: {results})" if results else ""
    return f'On "{question}": {remark}{said}. This is a canned local answer.'


def _tool_call(
    function: dict[str, Any], question: str, seed: int, place: tuple[int, ...]
) -> dict[str, Any]:
    """`place` makes the id unique: choice, call, and turn of the conversation."""
    schema = function.get("parameters") or {"type": "object"}
    value = instance(schema, question[:QUOTED], str(seed))
    arguments = json.dumps(value, ensure_ascii=False)
    identity = digest_of(seed, question, function["name"], *place)[:24]
    called = {"name": function["name"], "arguments": arguments}
    return {"id": f"call_{identity}", "type": "function", "function": called}


def _call_tokens(call: dict[str, Any]) -> int:
    function = call["function"]
    return count_tokens(function["name"]) + count_tokens(function["arguments"])


def _cut_calls(calls: list[dict[str, Any]], limit: int) -> bool:
    """Cuts the arguments of the call in which the limit falls; drops later calls."""
    for number, call in enumerate(calls):
        used = _call_tokens(call)
        if used > limit:
            room = max(0, limit - count_tokens(call["function"]["name"]))
            call["function"]["arguments"] = call["function"]["arguments"][: 4 * room]
            del calls[number + 1 :]
            return True
        limit -= used
    return False


def chosen_tools(body: dict[str, Any], question: str) -> list[dict[str, Any]]:
    """The functions that this turn calls, in the order of `tools`.

    A function is called because `tool_choice` says so, or because the question, being
    the last message, names it as a whole word.
    """
    functions = [tool["function"] for tool in body.get("tools") or ()]
    choice = body.get("tool_choice") or "auto"
    if not functions or choice == "none":
        return []
    if isinstance(choice, dict):
        name = choice["function"]["name"]
        return [f for f in functions if f["name"] == name][:1]
    asked = body["messages"][-1]["role"] == "user" or choice == "required"
    named = [f for f in functions if asked and _names(question, f["name"])]
    if choice == "required":
        named = named or functions[:1]
    return named[:1] if body.get("parallel_tool_calls") is False else named


def _names(question: str, tool: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(tool)}(?![\w-])", question) is not None


def _tool_results(messages: list[dict[str, Any]]) -> list[str]:
    """The texts of the tool messages after the last assistant message, if any."""
    results: list[str] = []
    for message in reversed(messages):
        if message["role"] != "tool":
            break
        results.insert(0, text_of(message))
    return results


def question_of(messages: list[dict[str, Any]]) -> str:
    """The text of the last user message; without one, of the last message."""
    for message in reversed(messages):
        if message["role"] == "user":
            return text_of(message)
    return text_of(messages[-1])


def text_of(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content or ())


def count_tokens(text: str) -> int:
    """Four characters are a token, about what English text has at OpenAI."""
    return (len(text) + 3) // 4


def prompt_tokens(body: dict[str, Any]) -> int:
    """Four for each message, plus its text, plus the tools as JSON."""
    messages = body["messages"]
    tokens = sum(4 + count_tokens(text_of(message)) for message in messages)
    tools = body.get("tools")
    return tokens + count_tokens(json.dumps(tools)) if tools else tokens


def _logprobs(content: str, body: dict[str, Any]) -> dict[str, Any]:
    """One entry for each word. The model has no doubts: each is certain."""
    tokens = []
    for word in words(content):
        token = {
            "token": word,
            "logprob": 0.0,
            "bytes": list(word.encode(errors="replace")),
        }
        top = [dict(token)] if body.get("top_logprobs") else []
        tokens.append({**token, "top_logprobs": top})
    return {"content": tokens, "refusal": None}


def _as_list(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else value or []
