"""What OpenAI demands of tools and of `response_format`, and of the schemas in them."""

from collections.abc import Iterator
from typing import Any

from racelab.server.checks import FLAG, OBJECT, TEXT, Rule, check, optional, required
from racelab.server.errors import bad_request

NAME = Rule(low=1, high=64, pattern="[a-zA-Z0-9_-]+")
FUNCTION = Rule(values=("function",))


def check_tools(body: dict[str, Any]) -> None:
    names = []
    for index, tool in enumerate(body.get("tools") or ()):
        path = f"tools[{index}]"
        check(tool, path, OBJECT)
        required(tool, "type", path, FUNCTION)
        path += ".function"
        function = required(tool, "function", f"tools[{index}]", OBJECT)
        names.append(required(function, "name", path, NAME))
        optional(function, "description", path, TEXT)
        strict = optional(function, "strict", path, FLAG)
        schema = optional(function, "parameters", path, OBJECT)
        if schema is not None and (wrong := fault_of_function(schema, bool(strict))):
            raise bad_request(
                f"Invalid schema for function '{names[-1]}': {wrong}",
                f"{path}.parameters",
                "invalid_function_parameters",
            )
    for name in ("tool_choice", "parallel_tool_calls"):
        if not names and body.get(name) is not None:
            raise bad_request(
                f"Invalid value for '{name}': '{name}' is only allowed when 'tools' "
                "are specified.",
                name,
            )
    check_choice(body.get("tool_choice"), names)


def check_choice(choice: Any, names: list[str]) -> None:
    if isinstance(choice, str):
        check(choice, "tool_choice", Rule(values=("none", "auto", "required")))
    elif choice is not None:
        required(choice, "type", "tool_choice", FUNCTION)
        function = required(choice, "function", "tool_choice", OBJECT)
        name = required(function, "name", "tool_choice.function", TEXT)
        if name not in names:
            raise bad_request(
                f"Invalid value for 'function_call': no function named '{name}' was "
                "specified in the 'functions' parameter.",
                "function_call",
            )


def check_format(body: dict[str, Any]) -> None:
    wanted = body.get("response_format")
    if wanted is None:
        return
    kinds = Rule(values=("json_object", "json_schema", "text"))
    kind = required(wanted, "type", "response_format", kinds)
    if kind == "json_object" and "json" not in str(body["messages"]).lower():
        raise bad_request(
            "'messages' must contain the word 'json' in some form, to use "
            "'response_format' of type 'json_object'.",
            "messages",
        )
    if kind == "json_schema":
        path = "response_format.json_schema"
        described = required(wanted, "json_schema", "response_format", OBJECT)
        name = required(described, "name", path, NAME)
        strict = optional(described, "strict", path, FLAG)
        schema = optional(described, "schema", path, OBJECT)
        wrong = next(faults_of_strict(schema, ()), None) if strict and schema else None
        if wrong:
            raise bad_request(
                f"Invalid schema for response_format '{name}': {wrong}",
                "response_format",
            )


def fault_of_function(schema: dict[str, Any], strict: bool) -> str | None:
    kind = schema.get("type")
    if kind != "object":
        return (
            "schema must be a JSON Schema of 'type: \"object\"', "
            f"got 'type: \"{kind}\"'."
        )
    if "properties" not in schema:
        return "In context=(), object schema missing properties."
    return next(faults_of_strict(schema, ()), None) if strict else None


def faults_of_strict(schema: Any, context: tuple[str, ...]) -> Iterator[str]:
    """In strict mode an object names all its properties and requires every one."""
    if not isinstance(schema, dict):
        return
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        properties = {}
    if properties or schema.get("type") == "object":
        if schema.get("additionalProperties") is not False:
            yield (
                f"In context={context}, 'additionalProperties' is required to be "
                "supplied and to be false."
            )
        needed = schema.get("required")
        for name in properties:
            if not isinstance(needed, list) or name not in needed:
                yield (
                    f"In context={context}, 'required' is required to be supplied and "
                    "to be an array including every key in properties. "
                    f"Missing '{name}'."
                )
    yield from faults_of_strict(schema.get("items"), (*context, "items"))
    for group in ("properties", "$defs", "definitions"):
        parts = schema.get(group)
        for name, part in (parts if isinstance(parts, dict) else {}).items():
            yield from faults_of_strict(part, (*context, group, name))
    branches = schema.get("anyOf")
    for index, part in enumerate(branches if isinstance(branches, list) else ()):
        yield from faults_of_strict(part, (*context, "anyOf", str(index)))
