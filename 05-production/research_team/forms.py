"""Answers with a form: what the API is told, and how it is read, trusting nobody.

The local server makes up something that fits; a real model may say less, or nothing.
"""

import json
from collections.abc import Callable
from typing import Any

from agents import Answer, Ask, InvalidResponse


def plan_form(questions: int) -> dict[str, Any]:
    size = {"minItems": questions, "maxItems": questions}
    return form("questions", {"type": "array", "items": {"type": "string"}, **size})


def check_form() -> dict[str, Any]:
    return form("sound", {"type": "boolean"})


def form(part: str, kind: dict[str, Any]) -> dict[str, Any]:
    """A `response_format`: a JSON object with one part."""
    schema = {
        "type": "object",
        "properties": {part: kind},
        "required": [part],
        "additionalProperties": False,
    }
    described = {"name": part, "strict": True, "schema": schema}
    return {"type": "json_schema", "json_schema": described}


def readable(ask: Ask, read: Callable[[str], object]) -> Ask:
    """The same `ask`, but an answer that `read` cannot use is none: it is retried."""

    async def ask_and_read(prompt: str) -> Answer | str:
        answer = await ask(prompt)
        read(answer if isinstance(answer, str) else answer.text)
        return answer

    return ask_and_read


def questions_in(text: str) -> list[str]:
    """The questions of a plan, each once. Raises `InvalidResponse` if it has none."""
    listed = part_of(text, "questions")
    if not isinstance(listed, list):
        raise InvalidResponse("a plan without a list of questions")
    # Of several lines, the last one: the local server repeats the whole prompt.
    lines = [item.strip().rpartition("\n")[2] for item in listed if is_text(item)]
    if not lines:
        raise InvalidResponse("a plan without questions")
    return list(dict.fromkeys(" ".join(line.split()) for line in lines))


def is_sound(text: str) -> bool:
    """What a check says. Raises `InvalidResponse`."""
    sound = part_of(text, "sound")
    if not isinstance(sound, bool):
        raise InvalidResponse("a check that does not say whether the answer is sound")
    return sound


def part_of(text: str, name: str) -> object:
    """Of the JSON object in `text`; some models put words or a fence around it."""
    try:
        value = json.loads(text[text.find("{") : text.rfind("}") + 1])
    except (ValueError, RecursionError) as error:
        raise InvalidResponse(f"not JSON: {error}") from None
    return value.get(name) if isinstance(value, dict) else None


def is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())
