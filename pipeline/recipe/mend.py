"""Puts what a schema allows where a document has what it does not, so that all else in it can be looked at too."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ... import schemas
from .document import stands
from .explain import explain, leaves
from .instead import ABSENT, allowed
from .nearest import SURELY, nearest
from .problem import Place
from .stop import parse_stop

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

_ORDER = {"additionalProperties": 0, "uniqueItems": 2}  # what is missing may be misspelt; lists get shorter last
ROUNDS = 8  # a mended place may show what is wrong in it, and so on


@dataclass
class Mended:
    """A document that fits its schema (`data`; None where it could not be mended), and what was wrong with it.

    `misspelt` maps the places of keys that were put right to where they stand. What `doubtful` places really mean
    nobody knows: they have one of several values, of which the longest list had `ways`.
    """

    data: dict[str, Any] | None
    wrong: list[tuple[Place, str]] = field(default_factory=list)
    misspelt: dict[Place, Place] = field(default_factory=dict)
    doubtful: set[Place] = field(default_factory=set)
    ways: int = 1

    def within_doubt(self, path: Place) -> bool:
        """Whether the place is a doubtful one, or lies in one."""
        return any(path[:end] in self.doubtful for end in range(1, len(path) + 1))


def mend(data: dict[str, Any], number: int, most: int) -> Mended:
    """The `number`-th way to mend a document. One with more than `most` errors is not mended.

    A key or a word that resembles a known one is taken for it. What is wrong nowhere else than in a doubtful place is
    not said: nobody wrote it.
    """
    made = Mended(data)
    for turn in range(ROUNDS):
        unusable = {**_unusable((), made.data), **dict(_stops(made.data))}
        if unusable:
            made.data = copy.deepcopy(made.data)
        made.wrong += [
            (stands(path, made.misspelt), text) for path, text in unusable.items() if not made.within_doubt(path)
        ]
        for path in unusable:
            made.doubtful.add(path)
            _put(made.data, path, None)
        errors = [leaf for error in schemas.violations(made.data) for leaf in leaves(error)]
        if not errors:
            return made
        errors.sort(key=lambda error: _ORDER.get(str(error.validator), 1))
        told = [(error, list(explain(error))) for error in errors]
        made.data = copy.deepcopy(made.data)
        for error, says in told:
            _mend(made, error, says, number, first=turn == 0)
        if len(made.wrong) > most:
            break
    made.data = None
    return made


def _mend(made: Mended, error: ValidationError, says: list[tuple[Place, str]], number: int, *, first: bool) -> None:
    """Note what one error says, unless it follows from what was put somewhere, and put something else there."""
    path: Place = tuple(error.absolute_path)
    beneath = any(place[: len(path)] == path for place in made.doubtful)
    if made.within_doubt(path) or (beneath and not first):
        says = []
    schema = error.schema
    if error.validator == "required":
        key = next(key for key in error.validator_value if f"'{key}'" in error.message)
        if key in (_at(made.data, path) or ()):
            return  # it was misspelt
        schema = schemas.resolved(schema, "recipe.json")[0].get("properties", {}).get(key, {})
        path = (*path, key)
    made.wrong += [(stands(place, made.misspelt), text) for place, text in says]
    if error.validator == "additionalProperties" and error.validator_value is False:
        for key in [key for key in _at(made.data, path) or () if key not in schema["properties"]]:
            _respell(made, path, key, schema["properties"])
    elif error.validator == "uniqueItems":
        several = _at(made.data, path)
        _put(made.data, path, [one for at, one in enumerate(several) if one not in several[:at]])
    else:
        _replace(made, path, error, schema, number)


def _replace(made: Mended, path: Place, error: ValidationError, schema: dict[str, Any], number: int) -> None:
    """Put a known word where one resembles it, else one of what the schema allows."""
    if error.validator == "enum" and isinstance(error.instance, str):
        guess = nearest(error.instance, [one for one in schema["enum"] if isinstance(one, str)], SURELY)
        if guess is not None:
            return _put(made.data, path, guess)
    values = allowed(schema) if schema else []
    if error.validator != "required" and not isinstance(path[-1], int):
        values.insert(0, ABSENT)  # where it must be there the next round says so
    made.doubtful.add(path[:-1] if path[-1] == "kind" else path)
    made.ways = max(made.ways, len(values))
    return _put(made.data, path, values[number % len(values)] if values else ABSENT)


def _respell(made: Mended, path: Place, key: str, known: dict[str, Any]) -> None:
    """Take an unknown key for the known one that it resembles, or out."""
    table = _at(made.data, path)
    value, guess = table.pop(key), nearest(key, known, SURELY)
    if guess is not None and guess not in table:
        table[guess] = value
        made.misspelt[*path, guess] = stands((*path, key), made.misspelt)


def _unusable(path: Place, value: Any) -> dict[Place, str]:
    """Numbers that JSON Schema chokes on: nan, infinities, huge ones."""
    if isinstance(value, float) and not math.isfinite(value):
        return {path: f"{value} is no usable number"}
    if isinstance(value, int) and value.bit_length() > 1000:
        return {path: "a huge number is no usable number"}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {place: text for key, item in items for place, text in _unusable((*path, key), item).items()}


def _stops(data: Any) -> Iterator[tuple[Place, str]]:
    """Rules of time that are none, in words and in how often a checkpoint is written."""
    places: list[Place] = [("checkpoint", "every")]
    for name, rest in (("embedding", ("stop_after",)), ("embeddings_from", ("embedding", "stop_after"))):
        tables = data.get(name)
        places += [(name, index, *rest) for index in range(len(tables) if isinstance(tables, list) else 0)]
    for place in places:
        text = _at(data, place)
        if isinstance(text, str):
            try:
                parse_stop(text, own=place[0] != "checkpoint")
            except ValueError as error:
                yield place, str(error)


def _at(value: Any, path: Place) -> Any:
    for part in path:
        if isinstance(value, dict):
            value = value.get(part)
        else:
            value = value[part] if isinstance(value, list) and isinstance(part, int) else None
    return value


def _put(data: Any, path: Place, value: Any) -> None:
    table, key = _at(data, path[:-1]), path[-1]
    if value is ABSENT:
        if isinstance(table, dict):
            table.pop(key, None)
    elif isinstance(table, dict) or (isinstance(table, list) and isinstance(key, int) and key < len(table)):
        table[key] = value  # type: ignore[index]
