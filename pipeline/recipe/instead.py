"""Values that a schema allows, to stand where a recipe has one that it does not."""

from __future__ import annotations

import re
from typing import Any

ABSENT = object()  # the key is taken out
_NUMBERS = (0, 1, 2, 8, 0.001, 0.5, 64, 100, 1000, 1_000_000)
_TEXTS = ("<unknown 1>", "<unknown 2>", "unknown-1", "unknown-2", "cpu", "auto", "7 steps", "7 minutes")


def allowed(schema: dict[str, Any]) -> list[Any]:
    """A few values that differ as far as the schema lets them; none where it says too little of itself."""
    if "enum" in schema:
        return list(schema["enum"])
    if "const" in schema:
        return [schema["const"]]
    if "anyOf" in schema:
        return [value for form in schema["anyOf"] for value in allowed(form)]
    kinds = schema.get("type", ())
    return [value for kind in ([kinds] if isinstance(kinds, str) else kinds) for value in _OF_TYPE[kind](schema)]


def _numbers(schema: dict[str, Any], whole: bool) -> list[Any]:
    def fits(value: float) -> bool:
        return (
            schema.get("minimum", value) <= value <= schema.get("maximum", value)
            and schema.get("exclusiveMinimum", value - 1) < value < schema.get("exclusiveMaximum", value + 1)
            and (not whole or value == int(value))
            and value % schema.get("multipleOf", value or 1) == 0
        )

    fitting = [value for value in _NUMBERS if fits(value)]
    return [fitting[0], fitting[-1]] if fitting else []


def _texts(schema: dict[str, Any]) -> list[str]:
    pattern = re.compile(schema.get("pattern", ""))
    return [text for text in _TEXTS if pattern.search(text)][:2]


def _lists(schema: dict[str, Any]) -> list[list[Any]]:
    """An empty list, or the shortest ones that are allowed."""
    size = schema.get("minItems", 0)
    if not size:
        return [[]]
    items = allowed(schema.get("items", {}))
    return [(items * size)[:size], (items[::-1] * size)[:size]] if items else []


def _tables(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """Tables of what must be in them."""
    tables: list[dict[str, Any]] = [{}, {}]
    for key in schema.get("required", ()):
        values = allowed(schema.get("properties", {}).get(key, {}))
        if not values:
            return []
        for number, table in enumerate(tables):
            table[key] = values[number % len(values)]
    return tables


_OF_TYPE = {
    "boolean": lambda _: [False, True],
    "integer": lambda schema: _numbers(schema, whole=True),
    "number": lambda schema: _numbers(schema, whole=False),
    "string": _texts,
    "array": _lists,
    "object": _tables,
}
