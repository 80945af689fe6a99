"""A JSON value that fits a JSON schema: what a model with structured output says."""

import math
import re
from typing import Any

from racelab.seeds import fraction_of

REPEATS = 2  # how often one `$ref` may occur within itself
LARGEST = 5_000  # schemas looked at for one instance
FORMATS = {
    "date-time": "2025-01-01T12:00:00Z",
    "date": "2025-01-01",
    "time": "12:00:00Z",
    "duration": "PT5M",
    "email": "scout@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.com/",
    "uuid": "123e4567-e89b-42d3-a456-426614174000",
}
# One atom of a simple pattern and how often: `[A-Z]{3}`, `\d+`, `x`.
ATOM = re.compile(r"(\\.|\[[^\]]+\]|[^\\\[])(?:\{(\d+)(?:,\d*)?\}|([*+?]))?")
GROUP = re.compile(r"\((?:\?:)?([^()|]*)(?:\|[^()]*)?\)")
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 _-.,:;/@#+*!?"


class Unfit(ValueError):
    """No value fits this schema, or none that this module can find."""


class Endless(Unfit):
    """This way a `$ref` would occur within itself too often; another may end."""


def instance(schema: Any, text: str, seed: str) -> Any:
    """Strings say `text`; numbers and choices are drawn from the seed and the text."""
    return _Maker(schema, text, seed).make(schema, ())


class _Maker:
    """`path` is the `$ref`s that lead to where we are."""

    def __init__(self, root: Any, text: str, seed: str) -> None:
        self.root, self.text, self.seed = root, text, seed
        self.drawn = self.strings = self.looked_at = 0

    def draw(self, count: int) -> int:
        """From 0 to count - 1."""
        self.drawn += 1
        return int(fraction_of(self.seed, self.text, self.drawn) * count)

    def make(self, schema: Any, path: tuple[str, ...]) -> Any:
        self.looked_at += 1
        if self.looked_at > LARGEST:
            raise Unfit("the schema is too large")
        if schema is True:
            return self.text
        if not isinstance(schema, dict):
            raise Unfit(f"{schema!r} is not a schema")
        if "$ref" in schema:
            reference = _part(schema, "$ref", str)
            if path.count(reference) == REPEATS:
                raise Endless(f"{reference!r} would repeat for ever")
            return self.make(self.target(reference), (*path, reference))
        if "const" in schema:
            return schema["const"]
        if values := _part(schema, "enum", list):
            return values[self.draw(len(values))]
        for several in ("anyOf", "oneOf", "allOf"):
            if branches := _part(schema, several, list):
                if several == "allOf" and len(branches) > 1:
                    raise Unfit("'allOf' of several schemas is not supported")
                return self.branch(branches, path)
        match _kind(schema):
            case "object":
                return self.object(schema, path)
            case "array":
                return self.array(schema, path)
            case "string":
                return self.string(schema)
            case "integer" | "number":
                return self.number(schema)
            case "boolean":
                return self.draw(2) == 1
            case "null":
                return None
        raise Unfit(f"{_kind(schema)!r} is not a type")

    def branch(self, branches: list[Any], path: tuple[str, ...]) -> Any:
        """The first branch that ends, null last; deep down, the simple ones first."""
        deep = len(path) > REPEATS
        for branch in sorted(branches, key=self.is_recursive if deep else _is_null):
            try:
                return self.make(branch, path)
            except Endless as error:
                endless = error
        raise endless

    def is_recursive(self, schema: Any) -> bool:
        if isinstance(schema, dict) and "$ref" in schema:
            schema = self.target(_part(schema, "$ref", str))
        return "$ref" in str(schema)

    def target(self, reference: str) -> Any:
        found = self.root
        for name in reference.removeprefix("#").split("/")[1:]:
            name = name.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, dict) or name not in found:
                raise Unfit(f"reference to {reference!r}, which does not exist")
            found = found[name]
        return found

    def object(self, schema: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
        required = _part(schema, "required", list)
        others = dict.fromkeys((n for n in required if isinstance(n, str)), True)
        result = {}
        for name, part in (others | _part(schema, "properties", dict)).items():
            try:
                result[name] = self.make(part, path)
            except Endless:
                if name in required:
                    raise
        return result

    def array(self, schema: dict[str, Any], path: tuple[str, ...]) -> list[Any]:
        first = _part(schema, "prefixItems", list)
        least = int(_bound(schema, "minItems", 0))
        most = _bound(schema, "maxItems", math.inf)
        items = schema.get("items", True)
        wanted = len(first) if items is False else max(len(first), 2)
        count = int(min(max(least, wanted), max(most, least)))
        if count > LARGEST:
            raise Unfit(f"an array of {count} items is too large")
        schemas = [*first, *[items] * (count - len(first))][:count]
        try:
            return [self.make(item, path) for item in schemas]
        except Endless:
            if least > 0:
                raise
            return []

    def number(self, schema: dict[str, Any]) -> float:
        """One of at most 100 steps between the bounds."""
        above = _bound(schema, "exclusiveMinimum", -math.inf)
        below = _bound(schema, "exclusiveMaximum", math.inf)
        low = max(_bound(schema, "minimum", -math.inf), above)
        high = min(_bound(schema, "maximum", math.inf), below)
        low = low if low > -math.inf else min(0, high - 100)
        high = high if high < math.inf else low + 100
        whole = _kind(schema) == "integer"
        step = _bound(schema, "multipleOf", 1 if whole else (high - low) / 100 or 1)
        base = 0 if whole or "multipleOf" in schema else low
        if step <= 0 or low > high:
            raise Unfit(f"no number is from {low:g} to {high:g} in steps of {step:g}")
        first, last = math.ceil((low - base) / step), math.floor((high - base) / step)
        first += base + first * step <= above
        last -= base + last * step >= below
        if first > last:
            raise Unfit(f"no number is from {low:g} to {high:g}")
        value = base + (first + self.draw(min(100, last - first + 1))) * step
        return int(value) if whole else round(value, 12)

    def string(self, schema: dict[str, Any]) -> str:
        """The text; a second string in the same value says so, to be told apart."""
        self.strings += 1
        text = self.text if self.strings == 1 else f"{self.text} ({self.strings})"
        if pattern := _part(schema, "pattern", str):
            return self.matching(pattern)
        text = FORMATS.get(_part(schema, "format", str), text)
        least = int(_bound(schema, "minLength", 0))
        if least > LARGEST:
            raise Unfit(f"a string of {least} characters is too large")
        most = _bound(schema, "maxLength", math.inf)
        return text.ljust(least, ".")[: None if math.isinf(most) else int(most)]

    def matching(self, pattern: str) -> str:
        """A string that a simple pattern describes: atoms one after another."""
        made = ""
        try:
            for atom, least, _ in ATOM.findall(GROUP.sub(r"\1", pattern.strip("^$"))):
                fitting = [c for c in LETTERS if re.fullmatch(atom, c)]
                made += fitting[self.draw(len(fitting))] * min(int(least or 1), LARGEST)
            if len(made) < LARGEST and re.search(pattern, made):
                return made
        except (re.error, IndexError, OverflowError):
            pass
        raise Unfit(f"pattern {pattern!r} is not supported by this local server")


def _kind(schema: dict[str, Any]) -> str:
    kinds = schema.get("type")
    if isinstance(kinds, list):
        kinds = next((kind for kind in kinds if kind != "null"), "null")
    if kinds is None:
        kinds = "object" if "properties" in schema else "string"
        kinds = "array" if "items" in schema else kinds
    return str(kinds)


def _is_null(schema: Any) -> bool:
    return isinstance(schema, dict) and schema.get("type") == "null"


def _part(schema: dict[str, Any], name: str, kind: type[Any]) -> Any:
    """A keyword of the schema; empty where it is missing."""
    value = schema.get(name)
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise Unfit(f"{value!r} is not of type {kind.__name__!r} ({name})")
    return value


def _bound(schema: dict[str, Any], name: str, default: float) -> float:
    value = schema.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unfit(f"{value!r} is not a number ({name})")
    return value
