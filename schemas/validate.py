"""Applies a schema to a document: the part of JSON Schema (draft 7) that recipes need, and every violation at once.

It is here, and not a library, because importing a validator takes longer than all else that `check` does. A test
holds it against the `jsonschema` package on recipes spoilt at random. On purpose it differs in three things: 10.0 is
no integer, nan and infinities are no numbers, and `$` in a pattern is the end of the text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin

from . import schema

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Violation:
    """One keyword that one value breaks. `limit` is what the schema says there; `about` the schema around it.

    For `required` and `additionalProperties` the limit is the key that is missing or unknown. For `anyOf`, `forms`
    holds what is wrong with the value in each of its forms.
    """

    path: Path
    keyword: str
    value: Any
    limit: Any
    about: dict[str, Any]
    forms: tuple[tuple[Violation, ...], ...] = ()


def violations(document: object, name: str = "recipe.json") -> Iterator[Violation]:
    """Every place where the document breaks the schema; references between the files are followed."""
    yield from _check(document, schema(name), name, ())


def _number(value: object) -> bool:
    return type(value) is int or (type(value) is float and math.isfinite(value))


TYPES: dict[str, Callable[[Any], bool]] = {
    "integer": lambda value: type(value) is int,
    "number": _number,
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}


def _matches(value: str, pattern: str) -> bool:
    return re.search(re.sub(r"\$$", r"\\Z", pattern), value) is not None


def _distinct(value: list[Any], wanted: bool) -> bool:
    return not wanted or len({repr(item) for item in value}) == len(value)


# keyword: (to which values it applies, what must hold)
PLAIN: dict[str, tuple[Callable[[Any], bool], Callable[[Any, Any], bool]]] = {
    "type": (
        lambda _: True,
        lambda value, kinds: any(TYPES[k](value) for k in ([kinds] if isinstance(kinds, str) else kinds)),
    ),
    "enum": (lambda _: True, lambda value, choices: value in choices),
    "const": (lambda _: True, lambda value, other: value == other),
    "pattern": (TYPES["string"], _matches),
    "minLength": (TYPES["string"], lambda value, least: len(value) >= least),
    "minimum": (_number, lambda value, least: value >= least),
    "exclusiveMinimum": (_number, lambda value, bound: value > bound),
    "maximum": (_number, lambda value, most: value <= most),
    "exclusiveMaximum": (_number, lambda value, bound: value < bound),
    "multipleOf": (_number, lambda value, unit: value % unit == 0),
    "minItems": (TYPES["array"], lambda value, least: len(value) >= least),
    "maxItems": (TYPES["array"], lambda value, most: len(value) <= most),
    "uniqueItems": (TYPES["array"], _distinct),
    "minProperties": (TYPES["object"], lambda value, least: len(value) >= least),
}
SAYING_NOTHING = {"$schema", "title", "description", "default", "then", "definitions"}


def _check(value: Any, about: dict[str, Any], file: str, path: Path) -> Iterator[Violation]:
    if "$ref" in about:
        yield from _check(value, *_referred(about["$ref"], file), path)
        return
    for keyword, limit in about.items():
        if keyword in PLAIN:
            applies, holds = PLAIN[keyword]
            if applies(value) and not holds(value, limit):
                yield Violation(path, keyword, value, limit, about)
        elif keyword in NESTED:
            yield from NESTED[keyword](value, about, file, path)
        elif keyword not in SAYING_NOTHING:
            raise NotImplementedError(f"{file} uses '{keyword}', which is not applied here")


def _referred(reference: str, file: str) -> tuple[dict[str, Any], str]:
    target, _, pointer = urljoin(file, reference).partition("#/")
    about = schema(target)
    for part in pointer.split("/") if pointer else ():
        about = about[part]
    return about, target


def _properties(value: Any, about: dict[str, Any], file: str, path: Path) -> Iterator[Violation]:
    for key, inner in about["properties"].items():
        if isinstance(value, dict) and key in value:
            yield from _check(value[key], inner, file, (*path, key))


def _additional(value: Any, about: dict[str, Any], file: str, path: Path) -> Iterator[Violation]:
    rule = about["additionalProperties"]
    for key in value if isinstance(value, dict) else ():
        if key in about.get("properties", ()) or rule is True:
            continue
        if rule is False:
            yield Violation(path, "additionalProperties", value, key, about)
        else:
            yield from _check(value[key], rule, file, (*path, key))


def _required(value: Any, about: dict[str, Any], _: str, path: Path) -> Iterator[Violation]:
    for key in about["required"] if isinstance(value, dict) else ():
        if key not in value:
            yield Violation(path, "required", value, key, about)


def _items(value: Any, about: dict[str, Any], file: str, path: Path) -> Iterator[Violation]:
    for index, item in enumerate(value if isinstance(value, list) else ()):
        yield from _check(item, about["items"], file, (*path, index))


def _all_of(value: Any, about: dict[str, Any], file: str, path: Path) -> Iterator[Violation]:
    for inner in about["allOf"]:
        yield from _check(value, inner, file, path)


def _any_of(value: Any, about: dict[str, Any], file: str, path: Path) -> Iterator[Violation]:
    forms = tuple(tuple(_check(value, inner, file, path)) for inner in about["anyOf"])
    if all(forms):
        yield Violation(path, "anyOf", value, about["anyOf"], about, forms)


def _if(value: Any, about: dict[str, Any], file: str, path: Path) -> Iterator[Violation]:
    if next(_check(value, about["if"], file, path), None) is None:
        yield from _check(value, about["then"], file, path)


NESTED: dict[str, Callable[[Any, dict[str, Any], str, Path], Iterator[Violation]]] = {
    "properties": _properties,
    "additionalProperties": _additional,
    "required": _required,
    "items": _items,
    "allOf": _all_of,
    "anyOf": _any_of,
    "if": _if,
}
