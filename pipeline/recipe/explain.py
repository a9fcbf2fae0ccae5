"""Turns what JSON Schema objects to into embeddings: what is wrong there, and the way out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pivotune import schemas

from ..text import did_you_mean, shortened
from .intervals import parse_stop
from .problem import Place

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

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


def leaves(error: ValidationError) -> Iterator[ValidationError]:
    """The violations that one stands for: of several forms take the one whose type the value has, and what is wrong
    with it as that form. A value of no form's type stands for itself."""
    wrong_type = [inner for inner in error.context or () if inner.validator == "type" and not inner.relative_path]
    unfit = {inner.relative_schema_path[0] for inner in wrong_type}
    chosen = [inner for inner in error.context or () if inner.relative_schema_path[0] not in unfit]
    if error.validator != "anyOf" or not chosen:
        yield error
    else:
        yield from (leaf for inner in chosen for leaf in leaves(inner))


def missing_key(error: ValidationError) -> str:
    """The key that a violation of `required` is about: each is one of its own."""
    return next(key for key in error.validator_value if key not in error.instance and f"'{key}'" in error.message)


def explain(error: ValidationError) -> Iterator[tuple[Place, str]]:
    """Every (path, embeddings) that one violation stands for."""
    for leaf in leaves(error):
        yield from _told(leaf)


def _told(error: ValidationError) -> Iterator[tuple[Place, str]]:
    path: Place = tuple(error.absolute_path)
    value, limit, schema = error.instance, error.validator_value, error.schema
    if error.validator == "additionalProperties" and limit is False:
        known = schema["properties"]
        for key in value:
            if key not in known:
                yield (*path, key), f"unknown key {shortened(key)!r}{did_you_mean(key, known)}"
    elif error.validator == "required":
        missing = missing_key(error)
        properties = schemas.resolved(schema, "recipe.json")[0].get("properties", {})
        text = properties.get(missing, {}).get("description", "")
        yield path, f"'{missing}' is missing ({text.rstrip('.')})" if text else f"'{missing}' is missing"
    elif error.validator == "anyOf":
        yield path, f"expected {' or '.join(_form(form) for form in limit)}, got {shown(value)}"
    else:
        yield path, _embeddings(str(error.validator), value, limit, schema, path)


def _embeddings(keyword: str, value: Any, limit: Any, schema: dict[str, Any], path: Place) -> str:
    if keyword == "type":
        names = [limit] if isinstance(limit, str) else limit
        known = " or ".join(_TYPES[name] for name in names if name != "null")  # which TOML cannot say
        return f"expected {schema.get('title') or known}, got {shown(value)}"
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
        parse_stop(value, own=True)
    except ValueError as error:
        return str(error)
    return f"{shown(value)} has more digits or blanks than are read here"


def _form(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return " or ".join(f"'{embedding}'" for embedding in schema["enum"])
    if schema["type"] == "object":
        return "a table { " + ", ".join(schema["properties"]) + " }" if "properties" in schema else "a table"
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
    return str(value) if isinstance(value, (int, float)) else f"the date or time {value}"
