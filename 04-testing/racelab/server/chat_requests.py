"""A chat request, read from its body.

Refused with 400 are a body without a model or messages, and tool calls that are not
answered in order. Parameters that are unknown, null or of the wrong type are ignored,
as most servers do.
"""

import json
from typing import Any, TypeVar

from racelab.server.errors import ApiError, unknown_model
from racelab.server.tool_order import check_order
from racelab.settings import Settings

Json = dict[str, Any]
Value = TypeVar("Value")
LONGEST_NAME = 256  # characters of a model's name, because each chunk repeats it


def chat_request(raw: bytes, settings: Settings) -> Json:
    """Return the request as a dictionary. Raise an `ApiError` if it is refused."""
    try:
        body = json.loads(raw.decode())
    except (ValueError, RecursionError):  # the latter if it is nested too deeply
        body = None
    if not isinstance(body, dict):
        raise ApiError(400, "We could not parse the JSON body of your request.")
    model, messages = part(body, "model", str), body.get("messages")
    if not model:
        raise ApiError(400, "you must provide a model parameter")
    if not isinstance(messages, list) or not messages:
        wrong = "Invalid 'messages': expected an array of at least one object."
        raise ApiError(400, wrong, "messages")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            path = f"messages[{index}]"
            raise ApiError(
                400, f"Invalid '{path}': expected an object with a role.", path
            )
    check_order(messages)
    if len(model) > LONGEST_NAME or (settings.models and model not in settings.models):
        raise unknown_model(model)
    return body


def part(parent: Json, name: str, kind: type[Value]) -> Value:
    """Return the value called `name`, or an empty `kind` if it is of another type."""
    value = parent.get(name)
    return value if isinstance(value, kind) else kind()


def whole_number(body: Json, name: str, most: int) -> int | None:
    """Return a number from 1 to `most`, or None for anything else."""
    value = body.get(name)
    return min(value, most) if type(value) is int and value > 0 else None


def functions_of(body: Json) -> list[Json]:
    """Return the functions in `tools`, without those that have no proper name."""
    tools = [tool for tool in part(body, "tools", list) if isinstance(tool, dict)]
    functions = [part(tool, "function", dict) for tool in tools]
    return [f for f in functions if 0 < len(part(f, "name", str)) <= 64][:128]


def token_limit(body: Json) -> int | None:
    """Return the most tokens that each choice may have, or None without a limit."""
    limit = whole_number(body, "max_completion_tokens", 10**9)
    return limit or whole_number(body, "max_tokens", 10**9)
