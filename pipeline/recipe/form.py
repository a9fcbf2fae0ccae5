"""Violations of the schema in a recipe, and the recipe without the violating parts, so that the rest can be checked."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pivotune import schemas

from ..text import SURELY, nearest
from .explain import explain, leaves, missing_key
from .intervals import parse_stop
from .problem import Place

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

# Stand-ins for required keys that were dropped; no check reports them.
_STAND_INS: dict[str, Any] = {"name": "dropped", "model": {"base": "owner/name"}, "stage": []}
_DROPPED = object()


@dataclass(frozen=True)
class Dropped:
    """Key paths of the original recipe whose values are unknown because they violate the schema."""

    places: frozenset[Place] = frozenset()

    def touches(self, *path: str | int) -> bool:
        """Whether the value at this key path, or a part of it, is unknown."""
        return any(place[: len(path)] == path[: len(place)] for place in self.places)

    def lacks(self, name: str) -> bool:
        """Whether whole items of a list (`stage`) are unknown."""
        return any(place[0] == name and len(place) <= 2 for place in self.places)

    def in_stages(self, key: str) -> bool:
        """Whether a key of some stage is unknown."""
        return any(place[0] == "stage" and (len(place) < 3 or place[2] == key) for place in self.places)


@dataclass(frozen=True)
class Form:
    """Violations of the schema: `problems` as messages, `errors` as jsonschema reports them.

    In `data` the values at the `unusable` key paths are None.
    """

    data: dict[str, Any]
    problems: list[tuple[Place, str]]
    errors: list[ValidationError]
    unusable: dict[Place, str]


def form_of(data: dict[str, Any], limit: int) -> Form:
    """All violations of the schema, not many more than `limit`.

    A required key that is misspelt is reported as misspelt, not as missing too.
    """
    unusable = {**_unusable((), data), **dict(_stops(data))}
    if unusable:
        data = copy.deepcopy(data)  # JSON Schema cannot compare such numbers
        for place in unusable:
            _table(data, place)[place[-1]] = None
    errors = [leaf for error in schemas.violations(data) for leaf in leaves(error)]
    unknown: dict[Place, list[str]] = {}
    for place in [place for error in errors for place in _unknown_keys(error)]:
        unknown.setdefault(place[:-1], []).append(str(place[-1]))
    problems = dict.fromkeys(unusable.items())
    for error in errors:
        path: Place = tuple(error.absolute_path)
        if error.validator == "required" and nearest(missing_key(error), unknown.get(path, ()), SURELY):
            continue
        if not any(path[:end] in unusable for end in range(1, len(path) + 1)):
            problems |= dict.fromkeys(explain(error))
        if len(problems) > limit:
            break
    return Form(data, list(problems), errors, unusable)


def without_refused(form: Form) -> tuple[dict[str, Any], Dropped, dict[Place, Place]]:
    """The document without the violating parts, what was dropped, and the original index of the remaining list items.

    A table is dropped with a required key, a list with one of its items; of the top-level lists ([[concept]],
    [[stage]], ...) only the item is dropped.
    """
    data, errors, doubtful = copy.deepcopy(form.data), form.errors, set[Place]()
    refused = [*form.unusable, *_refused(errors)]
    kept = {key: list(range(len(value))) for key, value in data.items() if isinstance(value, list)}
    while refused:
        intended = [place for error in errors for place in _intended_keys(error)]
        doubtful |= {_original(_smallest_droppable(place), kept) for place in (*refused, *intended)}
        for place in refused:
            _drop(data, _smallest_droppable(place))
        for key in kept.keys() & data.keys():
            pairs = [pair for pair in zip(kept[key], data[key], strict=True) if pair[1] is not _DROPPED]
            kept[key], data[key] = [at for at, _ in pairs], [item for _, item in pairs]
        errors = [leaf for error in schemas.violations(data) for leaf in leaves(error)]
        refused = _refused(errors)
    dropped = Dropped(frozenset(doubtful | {(key,) for key in _STAND_INS if key not in data}))
    if any(dropped.touches("model", key) for key in ("base", "family", "config")):
        data["model"] = _STAND_INS["model"]  # the model is unknown
    moved: dict[Place, Place] = {(key, now): (key, at) for key, old in kept.items() for now, at in enumerate(old)}
    return {**_STAND_INS, **data}, dropped, moved


def _refused(errors: list[ValidationError]) -> list[Place]:
    """The key paths to drop so that the errors disappear; never the recipe itself."""
    places = [place for error in errors for place in list(_unknown_keys(error)) or [tuple(error.absolute_path)]]
    return [place for place in places if place]


def _unknown_keys(error: ValidationError) -> Iterator[Place]:
    if error.validator == "additionalProperties" and error.validator_value is False:
        yield from ((*error.absolute_path, key) for key in error.instance if key not in error.schema["properties"])


def _intended_keys(error: ValidationError) -> Iterator[Place]:
    """The keys that an unknown key may stand for: the known key of similar name, else every absent key."""
    for place in _unknown_keys(error):
        known = error.schema["properties"]
        guess = nearest(str(place[-1]), known)
        yield from ((*place[:-1], key) for key in ([guess] if guess else known.keys() - error.instance.keys()))


def _smallest_droppable(place: Place) -> Place:
    """The smallest part that can be dropped: a nested list instead of its item, a whole [[embeddings_from]]."""
    if place[:1] == ("embeddings_from",):
        return place[:2]
    return next((place[:end] for end in range(2, len(place)) if isinstance(place[end], int)), place)


def _original(place: Place, kept: dict[str, list[int]]) -> Place:
    if len(place) > 1 and place[0] in kept and isinstance(place[1], int):
        return (place[0], kept[str(place[0])][place[1]], *place[2:])
    return place


def _drop(data: dict[str, Any], place: Place) -> None:
    table, key = _table(data, place), place[-1]
    if isinstance(table, dict):
        table.pop(key, None)
    elif isinstance(table, list):
        table[int(key)] = _DROPPED


def _table(data: Any, place: Place) -> Any:
    """The table or list that contains a key path; None if it was dropped already."""
    for part in place[:-1]:
        if isinstance(data, dict):
            data = data.get(part)
        else:
            data = data[part] if isinstance(data, list) and isinstance(part, int) else None
    return data


def _unusable(path: Place, value: Any) -> dict[Place, str]:
    """Numbers that JSON Schema cannot handle: nan, infinities, huge integers."""
    if isinstance(value, float) and not math.isfinite(value):
        return {path: f"{value} is not a finite number"}
    if isinstance(value, int) and value.bit_length() > 1000:
        return {path: "the number is too large"}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {place: text for key, item in items for place, text in _unusable((*path, key), item).items()}


def _stops(data: dict[str, Any]) -> Iterator[tuple[Place, str]]:
    """Values of `stop_after` and `checkpoint.every` that the schema cannot check, such as "0 steps"."""
    places: list[Place] = [("checkpoint", "every")]
    for name, rest in (("embedding", ("stop_after",)), ("embeddings_from", ("embedding", "stop_after"))):
        tables = data.get(name)
        places += [(name, index, *rest) for index in range(len(tables) if isinstance(tables, list) else 0)]
    for place in places:
        table = _table(data, place)
        text = table.get(place[-1]) if isinstance(table, dict) else None
        if isinstance(text, str):
            try:
                parse_stop(text, own=place[0] != "checkpoint")
            except ValueError as error:
                yield place, str(error)
