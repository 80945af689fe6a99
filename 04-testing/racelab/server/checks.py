"""Whether one value of a request is what OpenAI expects, and its words if it is not."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from racelab.server.errors import Refusal, bad_request

KINDS: dict[str, tuple[type, ...]] = {
    "a boolean": (bool,),
    "a decimal": (int, float),
    "a metadata object": (dict,),
    "a string": (str,),
    "an array of objects": (list,),
    "an array of strings": (list,),
    "an integer": (int,),
    "an object": (dict,),
    "one of a string or array of objects": (str, list),
    "one of a string or array of strings": (str, list),
    "one of one of 'none', 'auto', or 'required' or object": (str, dict),
}
NOUNS = {
    bool: "a boolean",
    dict: "an object",
    float: "a decimal number",
    int: "an integer",
    list: "an array",
    str: "a string",
    type(None): "null",
}


@dataclass(frozen=True, slots=True)
class Rule:
    """`low` and `high` bound a number, or the length of an array or a string."""

    kind: str = "a string"
    low: float | None = None
    high: float | None = None
    values: tuple[str, ...] = ()
    pattern: str = ""


TEXT, FLAG = Rule("a string"), Rule("a boolean")
OBJECT, OBJECTS = Rule("an object"), Rule("an array of objects")


def check(value: Any, path: str, rule: Rule) -> None:
    """`path` is where the value stands, as in `messages[0].role`."""
    wrong_type = type(value) not in KINDS[rule.kind]
    if wrong_type and not (rule.values and isinstance(value, str)):
        kind = f"one of {listed(rule.values, 'or')}" if rule.values else rule.kind
        raise bad_request(
            f"Invalid type for '{path}': expected {kind}, "
            f"but got {NOUNS[type(value)]} instead.",
            path,
            "invalid_type",
        )
    if rule.values and value not in rule.values:
        raise invalid_value(value, path, rule.values)
    if isinstance(value, list):
        check_length(len(value), path, rule, "array")
    elif rule.kind == "a string":
        check_length(len(value), path, rule, "string")
        check_pattern(value, path, rule)
    elif rule.kind in ("an integer", "a decimal"):
        check_bounds(value, path, rule)


def check_pattern(value: str, path: str, rule: Rule) -> None:
    if rule.pattern and not re.fullmatch(rule.pattern, value):
        raise bad_request(
            f"Invalid '{path}': string does not match pattern. Expected a string that "
            f"matches the pattern '^{rule.pattern}$'.",
            path,
            "invalid_value",
        )


def check_bounds(value: float, path: str, rule: Rule) -> None:
    kind = rule.kind.partition(" ")[2]
    for bound, side, sign, wrong in (
        (rule.low, "below minimum", ">=", rule.low is not None and value < rule.low),
        (rule.high, "above maximum", "<=", rule.high is not None and value > rule.high),
    ):
        if wrong:
            raise bad_request(
                f"Invalid '{path}': {kind} {side} value. "
                f"Expected a value {sign} {bound}, but got {value} instead.",
                path,
                f"{kind}_{side.replace(' ', '_').replace('imum', '')}_value",
            )


def check_length(length: int, path: str, rule: Rule, kind: str) -> None:
    article = "an" if kind == "array" else "a"
    if rule.low is not None and length < rule.low:
        raise bad_request(
            f"Invalid '{path}': empty {kind}. Expected {article} {kind} with minimum "
            f"length {rule.low}, but got an empty {kind} instead.",
            path,
            f"empty_{kind}",
        )
    if rule.high is not None and length > rule.high:
        raise bad_request(
            f"Invalid '{path}': {kind} too long. Expected {article} {kind} with "
            f"maximum length {rule.high}, but got {article} {kind} with length "
            f"{length} instead.",
            path,
            f"{kind}_above_max_length",
        )


def required(parent: dict[str, Any], name: str, within: str, rule: Rule) -> Any:
    path = f"{within}.{name}" if within else name
    if name not in parent:
        raise missing(path)
    check(parent[name], path, rule)
    return parent[name]


def optional(parent: dict[str, Any], name: str, within: str, rule: Rule) -> Any:
    """None where it is missing or null, which OpenAI takes for the same."""
    if parent.get(name) is None:
        return None
    return required(parent, name, within, rule)


def missing(path: str) -> Refusal:
    message = f"Missing required parameter: '{path}'."
    return bad_request(message, path, "missing_required_parameter")


def unknown(path: str, known: Sequence[str] = ()) -> Refusal:
    import difflib  # here, because it is slow to load and seldom needed

    close = difflib.get_close_matches(path, known, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    message = f"Unknown parameter: '{path}'.{hint}"
    return bad_request(message, path, "unknown_parameter")


def invalid_value(value: str, path: str, values: Sequence[str]) -> Refusal:
    return bad_request(
        f"Invalid value: '{value}'. Supported values are: {listed(values, 'and')}.",
        path,
        "invalid_value",
    )


def listed(values: Sequence[str], word: str) -> str:
    """'a', or 'a' and 'b', or 'a', 'b', and 'c'."""
    *first, last = (f"'{value}'" for value in values)
    if not first:
        return last
    return f"{', '.join(first)}{',' * (len(first) > 1)} {word} {last}"
