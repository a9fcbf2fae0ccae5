"""Turns violations of a JSON Schema into messages: what is wrong, and how to fix it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from pivotune import schemas

from ..text import SURELY, count_of, did_you_mean, nearest, shortened
from .intervals import parse_interval
from .problem import KeyPath

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

_TYPES = {
    "integer": "a whole number",
    "number": "a number",
    "string": "a string",
    "boolean": "true or false",
    "array": "a list",
    "object": "a table",
}
_LIMITS = {
    "minimum": "{0} is too small; the minimum is {1}",
    "exclusiveMinimum": "{0} is too small; must be greater than {1}",
    "maximum": "{0} is too large; the maximum is {1}",
    "exclusiveMaximum": "{0} is too large; must be less than {1}",
    "multipleOf": "{0} is not a multiple of {1}",
    "minLength": "the text is empty",
    "minProperties": "the table is empty",
    "minItems": "the list is too short; at least {2}",
    "maxItems": "the list is too long; at most {2}",
    "uniqueItems": "the list has duplicate items",
}


def leaves(error: ValidationError) -> Iterator[ValidationError]:
    """The violations that one consists of. For `anyOf` those of the alternatives with the value's type; if there are
    none, the violation itself."""
    wrong_type = [inner for inner in error.context or () if inner.validator == "type" and not inner.relative_path]
    unfit = {inner.relative_schema_path[0] for inner in wrong_type}
    chosen = [inner for inner in error.context or () if inner.relative_schema_path[0] not in unfit]
    if error.validator != "anyOf" or not chosen:
        yield error
    else:
        yield from (leaf for inner in chosen for leaf in leaves(inner))


def missing_key(error: ValidationError) -> str:
    """The key that a violation of `required` is about; there is one violation per key."""
    return next(key for key in error.validator_value if key not in error.instance and f"'{key}'" in error.message)


def explain(error: ValidationError) -> Iterator[tuple[KeyPath, str]]:
    """Key path and message of every violation that one consists of."""
    for leaf in leaves(error):
        yield from _messages(leaf)


def _messages(error: ValidationError) -> Iterator[tuple[KeyPath, str]]:
    path: KeyPath = tuple(error.absolute_path)
    value, limit, schema = error.instance, error.validator_value, error.schema
    if error.validator == "additionalProperties" and limit is False:
        known = schema["properties"]
        for key in value:
            if key not in known:
                yield (*path, key), f"unknown key {shortened(key)!r}{_belongs(key, known) or did_you_mean(key, known)}"
    elif error.validator == "required":
        missing = missing_key(error)
        properties = schemas.resolved(schema, "recipe.json")[0].get("properties", {})
        text = properties.get(missing, {}).get("description", "")
        yield path, f"'{missing}' is missing ({text.rstrip('.')})" if text else f"'{missing}' is missing"
    elif error.validator == "anyOf":
        expected = " or ".join(_alternative(option) for option in limit)
        types = [str(option.get("type")) for option in limit]
        yield path, f"expected {expected}, got {shown(value)}{_right_line(path, value, types)}"
    else:
        yield path, _message(str(error.validator), value, limit, schema, path)


_MOST_TABLES = 4  # a key of more tables says nothing of where it belongs


@cache
def _tables_of_keys() -> dict[str, list[str]]:
    """Every key of a recipe, and the tables that have it, as a message names them."""
    tables = {"the top level": schemas.schema("recipe.json")}
    for name, file in schemas.inner_tables().items():
        if file == "recipe.json" and name != "stage":
            about = schemas.schema(file)["properties"][name]
            tables[f"[[{name}]]" if about.get("type") == "array" else f"[{name}]"] = about.get("items", about)
    for file in schemas.names():
        folder, _, name = file.removesuffix(".json").rpartition("/")
        if folder == "stages":
            tables[f'[[stage]] kind = "{name}"'] = schemas.schema(file)
        elif folder == "tables":
            title = f"[[{name}]]" if name in tables["the top level"]["properties"] else f"the table {name}"
            tables[title] = schemas.schema(file)
    found: dict[str, list[str]] = {}
    for title, about in tables.items():
        for key in about.get("properties", {}):
            found.setdefault(key, []).append(title)
    return found


def _belongs(key: str, known: Iterable[str]) -> str:
    """`; it belongs in [[concept]]` for a key of other tables, unless it is a misspelt one of this table."""
    titles = _tables_of_keys().get(key, [])
    if not 0 < len(titles) <= _MOST_TABLES or nearest(key, known, SURELY):
        return ""
    return f"; it belongs in {' or '.join(titles)}"


def _message(keyword: str, value: Any, limit: Any, schema: dict[str, Any], path: KeyPath) -> str:
    if keyword == "type":
        names = [limit] if isinstance(limit, str) else limit
        known = " or ".join(_TYPES[name] for name in names if name != "null")  # TOML has no null
        title = None if "object" in names else schema.get("title")
        return f"expected {title or known}, got {shown(value)}{_right_line(path, value, names)}"
    if keyword == "enum":
        if isinstance(value, str) and (meant := ALIASES.get(value.lower())) in limit:
            return f"unknown value {shown(value)}; write '{meant}'"
        hint = did_you_mean(value, limit) if isinstance(value, str) else f"; known: {', '.join(limit)}"
        return f"unknown value {shown(value)}{hint}"
    if keyword == "pattern":
        if path[-1] == "stop_after":
            return _stop_message(value)
        hint = _right_line(path, value, ("integer",)) if path[-1] == "steps" else ""
        return f"{shown(value)} is not {schema.get('title', 'allowed here')}{hint}"
    form = _LIMITS.get(keyword)
    items = count_of(limit, "item") if isinstance(limit, int) else ""
    return form.format(shown(value), limit, items) if form else f"{shown(value)} is not allowed ({keyword})"


ALIASES = {  # what people call the programs
    "automatic1111": "a1111", "auto1111": "a1111", "webui": "a1111", "sd-webui": "a1111",
    "stable-diffusion-webui": "a1111", "comfy": "comfyui", "invoke": "invokeai", "swarm": "swarmui",
    "sd.next": "sdnext", "vlad": "sdnext", "sd-scripts": "kohya", "kohya_ss": "kohya", "one-trainer": "onetrainer",
}  # fmt: skip
_MAIN_KEYS = {"optimizer": "kind", "lora": "rank", "locality": "weight", "watch": "sample_every", "save": "every"}


def _right_line(path: KeyPath, value: Any, names: Iterable[str]) -> str:
    """`; write lora = { rank = 16 }` for a value of the wrong type whose meaning is plain."""
    key = next((part for part in reversed(path) if isinstance(part, str)), "")
    if isinstance(value, str) and {"number", "integer"} & set(names):
        try:
            float(value)
        except ValueError:
            return ""
        return f"; write it without quotes: {key} = {value.strip()}"
    plain = isinstance(value, str | int | float) and not isinstance(value, bool)
    if plain and "object" in names and key in _MAIN_KEYS:
        return f"; write {key} = {{ {_MAIN_KEYS[key]} = {json.dumps(value)} }}"
    return ""


def _stop_message(value: str) -> str:
    try:
        parse_interval(value, own=True)
    except ValueError as error:
        return str(error)
    return f"{shown(value)} has too many digits or spaces"


def _alternative(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return " or ".join(f"'{name}'" for name in schema["enum"])
    if schema["type"] == "object":
        return "a table { " + ", ".join(schema["properties"]) + " }" if "properties" in schema else "a table"
    return _TYPES[schema["type"]]


def shown(value: Any) -> str:
    """A value as shown in a message: shortened, tables and lists without their contents."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return repr(shortened(value))
    return str(value) if isinstance(value, (int, float)) else f"a date or time ({value})"
