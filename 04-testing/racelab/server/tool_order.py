"""Whether the tool calls in a list of messages are answered as OpenAI demands."""

from typing import Any

from racelab.server.errors import ApiError


def check_order(messages: list[dict[str, Any]]) -> None:
    """Raise OpenAI's 400 unless each tool call is answered once, right after it."""
    called: dict[str, bool] = {}  # id -> whether the call is answered
    for index, message in enumerate(messages):
        if message["role"] == "tool":
            check_answer(message.get("tool_call_id"), index, called)
            continue
        check_all_answered(called, f"messages.[{index}].role")
        calls = message.get("tool_calls") if message["role"] == "assistant" else ()
        calls = calls if isinstance(calls, list) else ()
        ids = (call.get("id") for call in calls if isinstance(call, dict))
        called = {name: False for name in ids if isinstance(name, str)}
    check_all_answered(called, "messages")


def check_answer(identity: Any, index: int, called: dict[str, bool]) -> None:
    if isinstance(identity, str) and called.get(identity) is False:
        called[identity] = True
        return
    wrong = f"'tool_call_id' of '{identity}' not found in 'tool_calls' of previous "
    wrong += "message, or answered before."
    if not called:
        wrong = "messages with role 'tool' must be a response to a preceeding message "
        wrong += "with 'tool_calls'."
    raise ApiError(400, f"Invalid parameter: {wrong}", f"messages.[{index}]")


def check_all_answered(called: dict[str, bool], path: str) -> None:
    if unanswered := [name for name, is_answered in called.items() if not is_answered]:
        message = (
            "An assistant message with 'tool_calls' must be followed by tool messages "
            "responding to each 'tool_call_id'. The following tool_call_ids did not "
            f"have response messages: {', '.join(unanswered)}"
        )
        raise ApiError(400, message, path)
