"""Whether a list of messages is a conversation that OpenAI would continue."""

from typing import Any

from racelab.server.checks import (
    OBJECT,
    TEXT,
    Rule,
    check,
    invalid_value,
    missing,
    optional,
    required,
)
from racelab.server.errors import bad_request

ROLES = Rule(values=("system", "assistant", "user", "function", "tool", "developer"))
CONTENT = Rule("one of a string or array of objects")
PARTS: dict[str, tuple[str, ...]] = {
    "user": ("text", "image_url", "input_audio", "file"),
    "assistant": ("text", "refusal"),
}
IDENTITY = Rule(low=1, high=64)


def check_messages(messages: list[Any]) -> None:
    for index, message in enumerate(messages):
        path = f"messages[{index}]"
        check(message, path, OBJECT)
        role = required(message, "role", path, ROLES)
        check_content(message, role, index)
        optional(message, "name", path, TEXT)
        if role == "assistant":
            check_tool_calls(message, path)
        elif role == "tool":
            required(message, "tool_call_id", path, TEXT)
        elif role == "function":
            required(message, "name", path, TEXT)
    check_order(messages)


def check_content(message: dict[str, Any], role: str, index: int) -> None:
    content = message.get("content")
    if isinstance(content, str):
        return
    path = f"messages[{index}].content"
    if content is None:
        others = ("tool_calls", "function_call", "refusal", "audio")
        if role == "function" or (
            role == "assistant" and any(map(message.get, others))
        ):
            return
        if role == "developer" and "content" not in message:
            raise missing(path)
        raise bad_request(
            "Invalid value for 'content': expected a string, got null.",
            f"messages.[{index}].content",
        )
    check(content, path, CONTENT)
    for number, part in enumerate(content):
        place = f"{path}[{number}]"
        check(part, place, OBJECT)
        kind = required(part, "type", place, TEXT)
        if kind not in PARTS.get(role, ("text",)):
            raise invalid_value(kind, f"{place}.type", PARTS.get(role, ("text",)))
        rule = TEXT if kind in ("text", "refusal") else OBJECT
        required(part, kind, place, rule)


def check_tool_calls(message: dict[str, Any], path: str) -> None:
    rule = Rule("an array of objects", 1, 128)
    for number, call in enumerate(optional(message, "tool_calls", path, rule) or ()):
        place = f"{path}.tool_calls[{number}]"
        check(call, place, OBJECT)
        required(call, "id", place, IDENTITY)
        required(call, "type", place, Rule(values=("function",)))
        function = required(call, "function", place, OBJECT)
        required(function, "name", f"{place}.function", TEXT)
        required(function, "arguments", f"{place}.function", TEXT)


def check_order(messages: list[dict[str, Any]]) -> None:
    """Every tool call is answered, once, before anybody else speaks."""
    called: list[str] = []  # by the last message that was not an answer
    answered: dict[str, int] = {}  # id -> which message
    for index, message in enumerate(messages):
        if message["role"] == "tool":
            check_answer(message["tool_call_id"], index, called, answered)
            answered[message["tool_call_id"]] = index
            continue
        check_all_answered(called, answered, f"messages.[{index}].role")
        called = [call["id"] for call in message.get("tool_calls") or ()]
        answered = {}
    check_all_answered(called, answered, "messages")


def check_answer(
    identity: str, index: int, called: list[str], answered: dict[str, int]
) -> None:
    if not called:
        raise bad_request(
            "Invalid parameter: messages with role 'tool' must be a response to a "
            "preceeding message with 'tool_calls'.",
            f"messages.[{index}].role",
        )
    if identity not in called:
        raise bad_request(
            f"Invalid parameter: 'tool_call_id' of '{identity}' not found in "
            "'tool_calls' of previous message.",
            f"messages.[{index}].tool_call_id",
        )
    if identity in answered:
        raise bad_request(
            f"Invalid parameter: Duplicate value for 'tool_call_id' of '{identity}', "
            f"in messages[{answered[identity]}] and messages[{index}].",
            f"messages.[{index}].tool_call_id",
        )


def check_all_answered(called: list[str], answered: dict[str, int], path: str) -> None:
    open_calls = [identity for identity in called if identity not in answered]
    if open_calls:
        raise bad_request(
            "An assistant message with 'tool_calls' must be followed by tool messages "
            "responding to each 'tool_call_id'. The following tool_call_ids did not "
            f"have response messages: {', '.join(open_calls)}",
            path,
        )
