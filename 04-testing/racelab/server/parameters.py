"""Which chat requests the server accepts: OpenAI's parameters as one table."""

import json
from typing import Any

from racelab.server.checks import (
    FLAG,
    OBJECT,
    TEXT,
    Rule,
    check,
    missing,
    required,
    unknown,
)
from racelab.server.errors import bad_request, not_json, unknown_model
from racelab.server.schemas import check_format, check_tools
from racelab.server.tool_order import check_messages
from racelab.settings import Settings

PENALTY = Rule("a decimal", -2, 2)
PARAMETERS = {  # in the order in which OpenAI reports what is wrong
    "model": TEXT,
    "messages": Rule("an array of objects", 1),
    "tools": Rule("an array of objects", 1, 128),
    "tool_choice": Rule("one of one of 'none', 'auto', or 'required' or object"),
    "parallel_tool_calls": FLAG,
    "response_format": OBJECT,
    "max_completion_tokens": Rule("an integer", 1),
    "max_tokens": Rule("an integer", 1),
    "n": Rule("an integer", 1, 128),
    "stop": Rule("one of a string or array of strings", high=4),
    "temperature": Rule("a decimal", 0, 2),
    "top_p": Rule("a decimal", 0, 1),
    "presence_penalty": PENALTY,
    "frequency_penalty": PENALTY,
    "logit_bias": OBJECT,
    "logprobs": FLAG,
    "top_logprobs": Rule("an integer", 0, 20),
    "user": TEXT,
    "seed": Rule("an integer", -(2**63), 2**63 - 1),
    "safety_identifier": Rule(high=64),
    "prompt_cache_key": TEXT,
    "prompt_cache_options": OBJECT,
    "prompt_cache_retention": Rule(values=("in_memory", "24h")),
    "prediction": OBJECT,
    "service_tier": Rule(
        values=("auto", "default", "fast", "flex", "priority", "scale")
    ),
    "stream": FLAG,
    "stream_options": OBJECT,
    "store": FLAG,
    "metadata": Rule("a metadata object"),
    "modalities": Rule("an array of strings", 1),
    "reasoning_effort": Rule(
        values=("none", "minimal", "low", "medium", "high", "xhigh", "max")
    ),
    "verbosity": Rule(values=("low", "medium", "high")),
}
NOT_HERE = {  # OpenAI has them, this server has not
    "audio": "",
    "function_call": " Use 'tool_choice' instead.",
    "functions": " Use 'tools' instead.",
    "moderation": "",
    "web_search_options": "",
}
ONLY_WITH = (
    ("stream_options", "stream"),
    ("top_logprobs", "logprobs"),
)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


DECODER = json.JSONDecoder(parse_constant=_no_constant)  # refuses NaN and Infinity


def chat_request(raw: bytes, settings: Settings) -> dict[str, Any]:
    """The request as a dictionary that `answers` can rely on, or a Refusal."""
    try:
        body = decoded(raw)
        check_request(body)
    except RecursionError:  # nested without end
        raise not_json() from None
    if settings.models and body["model"] not in settings.models:
        raise unknown_model(body["model"])
    return body


def decoded(raw: bytes) -> dict[str, Any]:
    try:
        body = DECODER.decode(raw.decode())
    except ValueError:
        raise not_json() from None
    if not isinstance(body, dict):
        raise not_json()
    return body


def check_request(body: dict[str, Any]) -> None:
    if body.get("model") is None:
        raise bad_request("you must provide a model parameter")
    if body.get("messages") is None:
        raise missing("messages")
    for name in body:
        if name not in PARAMETERS:
            raise (
                unsupported(name) if name in NOT_HERE else unknown(name, [*PARAMETERS])
            )
    for name, rule in PARAMETERS.items():
        if name in body and (body[name] is not None or name == "parallel_tool_calls"):
            check(body[name], name, rule)
    check_messages(body["messages"])
    if len(body) > 2:
        check_combinations(body)


def unsupported(name: str) -> Exception:
    return bad_request(
        f"Unsupported parameter: '{name}' is not supported by this local server."
        f"{NOT_HERE[name]}",
        name,
        "unsupported_parameter",
    )


def check_combinations(body: dict[str, Any]) -> None:
    """What is right by itself and wrong beside the rest, or deeper down."""
    check_tools(body)
    check_format(body)
    if body.get("max_tokens") and body.get("max_completion_tokens"):
        raise bad_request(
            "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not "
            "supported.",
            "max_tokens",
            "invalid_parameter_combination",
        )
    for name, needed in ONLY_WITH:
        if body.get(name) is not None and not body.get(needed):
            raise bad_request(
                f"The '{name}' parameter is only allowed when '{needed}' is enabled.",
                name,
            )
    for name in body.get("stream_options") or ():
        if name not in ("include_usage", "include_obfuscation"):
            raise unknown(f"stream_options.{name}")
        required(body["stream_options"], name, "stream_options", FLAG)
    for name in ("stop", "modalities"):
        values = body.get(name)
        for index, value in enumerate(values if isinstance(values, list) else ()):
            check(value, f"{name}[{index}]", TEXT)
    if "audio" in (body.get("modalities") or ()):
        raise bad_request(
            "Unsupported value: 'modalities' does not support 'audio' with this model.",
            "modalities",
            "unsupported_value",
        )
    for token, bias in (body.get("logit_bias") or {}).items():
        check(bias, f"logit_bias.{token}", Rule("an integer", -100, 100))
    check_metadata(body.get("metadata") or {})


def check_metadata(metadata: dict[str, Any]) -> None:
    if len(metadata) > 16:
        raise bad_request(
            "Invalid 'metadata': too many properties. Expected an object with at most "
            f"16 properties, but got an object with {len(metadata)} properties "
            "instead.",
            "metadata",
            "object_above_max_properties",
        )
    for name, value in metadata.items():
        check(value, f"metadata.{name}", Rule(high=512))
