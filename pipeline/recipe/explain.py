"""Turns what a schema objects to into words: what is wrong there, and the way out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from ...schemas.validate import Violation
from .nearest import did_you_mean
from .problem import Place, shortened
from .stop import parse_stop

_TYPES = {
    "integer": "a whole number",
    "number": "a number",
    "string": "a text in quotes",
    "boolean": "true or false",
    "array": "a list",
    "object": "a table",
}
_LIMITS = {
    "minimum": "{0} is too small; at least {1}",
    "exclusiveMinimum": "{0} is too small; more than {1}",
    "maximum": "{0} is too large; at most {1}",
    "exclusiveMaximum": "{0} is too large; less than {1}",
    "multipleOf": "{0} is no multiple of {1}",
    "minLength": "the text is empty",
    "minProperties": "the table is empty",
    "minItems": "the list is too short; at least {1}",
    "maxItems": "the list is too long; at most {1}",
    "uniqueItems": "the list holds something twice",
}


def explain(violation: Violation) -> Iterator[tuple[Place, str]]:
    """What one violation says, with the path it is about."""
    path, value, limit, about = violation.path, violation.value, violation.limit, violation.about
    if violation.keyword == "additionalProperties":
        yield (*path, limit), f"unknown key {shortened(limit)!r}{did_you_mean(limit, about['properties'])}"
    elif violation.keyword == "required":
        text = about["properties"].get(limit, {}).get("description", "").rstrip(".")
        yield path, f"'{limit}' is missing ({text})" if text else f"'{limit}' is missing"
    elif isinstance(value, float) and not math.isfinite(value):
        yield path, f"{value} is no usable number"
    elif violation.keyword == "anyOf":
        yield from _any_of(violation)
    else:
        yield path, _words(violation.keyword, value, limit, about, path)


def _words(keyword: str, value: Any, limit: Any, schema: dict[str, Any], path: Place) -> str:
    if keyword == "type":
        names = [limit] if isinstance(limit, str) else limit
        return f"expected {schema.get('title') or ' or '.join(_TYPES[name] for name in names)}, got {shown(value)}"
    if keyword == "enum":
        hint = did_you_mean(value, limit) if isinstance(value, str) else f"; known: {', '.join(limit)}"
        return f"{shown(value)} is not known here{hint}"
    if keyword == "pattern":
        if path[-1] == "stop_after":
            return _stop(value)
        return f"{shown(value)} is not {schema.get('title', 'allowed here')}"
    form = _LIMITS.get(keyword)
    return form.format(shown(value), limit) if form else f"{shown(value)} is not allowed here ({keyword})"


def _stop(value: str) -> str:
    try:
        parse_stop(value)
    except ValueError as error:
        return str(error)
    return f"{shown(value)} has more digits or blanks than are read here"


def _any_of(violation: Violation) -> Iterator[tuple[Place, str]]:
    """Of several forms take the one whose type the value has, and say what is wrong with it as that form."""
    fitting = [form for form in violation.forms if not any(_is_of_other_type(inner, violation) for inner in form)]
    if fitting:
        for inner in fitting[0]:
            yield from explain(inner)
    else:
        forms = " or ".join(_form(form) for form in violation.limit)
        yield violation.path, f"expected {forms}, got {shown(violation.value)}"


def _is_of_other_type(inner: Violation, whole: Violation) -> bool:
    return inner.keyword == "type" and inner.path == whole.path


def _form(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return " or ".join(f"'{word}'" for word in schema["enum"])
    if schema["type"] == "object":
        return "a table { " + ", ".join(schema["properties"]) + " }"
    return _TYPES[schema["type"]]


def shown(value: Any) -> str:
    """A value in an error message: short, and never its insides."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the text {shortened(value)!r}"
    if isinstance(value, int) and value.bit_length() > 1000:
        return "a huge number"
    return str(value) if isinstance(value, (int, float)) else f"the date or time {value}"
