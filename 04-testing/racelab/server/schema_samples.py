"""A JSON value that fits a JSON schema, as a model with structured output returns it.

A `pattern` is ignored, because matching a regular expression can take forever. So is
every other keyword that does not occur below.
"""

import json
import math
from typing import Any

from racelab.seeds import fraction_of
from racelab.server.chat_requests import Json, part

LARGEST = 200_000  # characters of a value, because a short schema can ask for many
FORMATS = {"date": "2025-01-01", "date-time": "2025-01-01T12:00:00Z"}
FORMATS |= {"uuid": "123e4567-e89b-42d3-a456-426614174000"}
FAR = 1e300  # the bound of a number without one
Refs = tuple[str, ...]


class Unfit(ValueError):
    """No value fits this schema."""


class Sample:
    """A value whose strings repeat `text`. The seed decides what may vary."""

    def __init__(self, root: Any, text: str, seed: str, room: int = LARGEST) -> None:
        self.root, self.text, self.seed = root, text, seed
        self.room = self.text_room = room  # characters left
        self.drawn = self.strings = 0

    def draw(self, count: int) -> int:
        """Return a number from 0 to `count` - 1."""
        self.drawn += 1
        return int(fraction_of(self.seed, self.text, self.drawn) * count)

    def use(self, characters: int) -> None:
        self.room -= characters
        if self.room < 0:
            raise ValueError("the value would be too large")

    def make(self, schema: Any, refs: Refs = ()) -> Any:
        """Return the value. `refs` are the `$ref`s on the way to this schema."""
        schema = schema if isinstance(schema, dict) else {}
        parts = [v for v in schema.values() if isinstance(v, dict | list)]
        self.use(10 + len(schema) + sum(map(len, parts)))  # what is looked at below
        if reference := part(schema, "$ref", str):
            self.use(len(reference))
            found: Json = self.root
            for name in reference.split("/")[1:]:
                found = part(found, name, dict)
            if reference in refs or not found:
                raise Unfit(f"{reference!r} is missing or would repeat forever")
            return self.make(found, (*refs, reference))
        values = [schema["const"]] if "const" in schema else part(schema, "enum", list)
        if values:
            value = values[self.draw(len(values))]
            self.use(len(json.dumps(value)))
            return value
        for several in ("anyOf", "oneOf", "allOf"):
            if branches := part(schema, several, list):
                return self.first_fit(branches, refs)
        kind = schema.get("type", "object" if "properties" in schema else "string")
        if isinstance(kind, list):  # such as ["string", "null"]
            kind = next((k for k in kind if k != "null"), "null")
        if kind in ("object", "array"):
            return (self.object if kind == "object" else self.array)(schema, refs)
        if kind in ("integer", "number"):
            return number(schema, kind == "integer", self.draw(10))
        if kind in ("boolean", "null"):
            return self.draw(2) == 1 if kind == "boolean" else None
        if kind != "string":
            raise Unfit(f"{kind!r} is not a type")
        return self.string(schema)

    def first_fit(self, branches: list[Any], refs: Refs) -> Any:
        for branch in sorted(branches, key=lambda branch: branch == {"type": "null"}):
            try:
                return self.make(branch, refs)
            except Unfit as error:
                unfit = error
        raise unfit

    def object(self, schema: Json, refs: Refs) -> Json:
        names = part(schema, "required", list)
        value, required = {}, dict.fromkeys(n for n in names if isinstance(n, str))
        for name, inner in {**required, **part(schema, "properties", dict)}.items():
            self.use(len(name))
            try:
                value[name] = self.make(inner, refs)
            except Unfit:
                if name in required:
                    raise
        return value

    def array(self, schema: Json, refs: Refs) -> list[Any]:
        least = size(schema, "minItems", 0)
        count = max(least, min(2, size(schema, "maxItems", 2)))
        try:
            return [self.make(schema.get("items"), refs) for _ in range(count)]
        except Unfit:
            if least:
                raise
            return []

    def string(self, schema: Json) -> str:
        """Return the text, numbered from the second string on."""
        self.strings += 1
        text = self.text[: self.text_room // 4]
        self.text_room -= len(text)
        text += f" ({self.strings})" * (self.strings > 1)
        text = FORMATS.get(part(schema, "format", str), text)
        least = size(schema, "minLength", 0)
        self.use(least)
        return text.ljust(least, ".")[: size(schema, "maxLength", LARGEST)]


def number(schema: Json, whole: bool, steps: int) -> float:
    """Return a number near 0, or near the bound that is closest to 0."""
    step = 1 if whole else 0.125
    low = max(
        bound(schema, "minimum", -FAR), bound(schema, "exclusiveMinimum", -FAR) + step
    )
    high = min(
        bound(schema, "maximum", FAR), bound(schema, "exclusiveMaximum", FAR) - step
    )
    if whole:
        low, high = math.ceil(low), math.floor(high)
    if low > high:
        raise Unfit(f"no such number is from {low:g} to {high:g}")
    nearest = min(max(0, low), high)
    value = nearest + steps * step
    return value if value <= high else nearest


def bound(schema: Json, name: str, default: float) -> float:
    value = schema.get(name)
    return value if type(value) is int or type(value) is float else default


def size(schema: Json, name: str, default: int) -> int:
    return max(0, int(bound(schema, name, default)))
