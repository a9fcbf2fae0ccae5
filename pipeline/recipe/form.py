"""What the schema refuses of a recipe, and the recipe without it, so that all else in it can be checked too."""

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

# Required tables and keys that were dropped: no check finds anything in these.
_STAND_INS: dict[str, Any] = {"name": "dropped", "model": {"base": "owner/name"}, "stage": []}
_DROPPED = object()


@dataclass(frozen=True)
class Dropped:
    """Places of a recipe, as it was read, whose meaning is unknown because the schema refuses what they hold."""

    places: frozenset[Place] = frozenset()

    def touches(self, *path: str | int) -> bool:
        """Whether something at the place, in it or around it is unknown."""
        return any(place[: len(path)] == path[: len(place)] for place in self.places)

    def lacks(self, name: str) -> bool:
        """Whether whole tables of a list (`stage`) are unknown."""
        return any(place[0] == name and len(place) <= 2 for place in self.places)

    def in_stages(self, key: str) -> bool:
        """Whether a key of some stage is unknown."""
        return any(place[0] == "stage" and (len(place) < 3 or place[2] == key) for place in self.places)


@dataclass(frozen=True)
class Form:
    """What is wrong with the form of a document: `problems` in embeddings, `errors` as the schema has them.

    In `data` there is None at the `unusable` places.
    """

    data: dict[str, Any]
    problems: list[tuple[Place, str]]
    errors: list[ValidationError]
    unusable: dict[Place, str]


def form_of(data: dict[str, Any], most: int) -> Form:
    """All problems of the form at once, a few more than `most` at most.

    What is missing because its key is misspelt is reported as misspelt only.
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
        if len(problems) > most:
            break
    return Form(data, list(problems), errors, unusable)


def without_refused(form: Form) -> tuple[dict[str, Any], Dropped, dict[Place, Place]]:
    """The document without what is wrong in it, what was dropped, and where the remaining tables of lists stood.

    A table goes with a key that it must have, a list with an item of it; but of the lists of the recipe itself
    ([[concept]], [[stage]], ...) only the table goes.
    """
    data, errors, doubtful = copy.deepcopy(form.data), form.errors, set[Place]()
    refused = [*form.unusable, *_refused(errors)]
    kept = {key: list(range(len(value))) for key, value in data.items() if isinstance(value, list)}
    while refused:
        meant = [place for error in errors for place in _meant(error)]
        doubtful |= {_original(_whole(place), kept) for place in (*refused, *meant)}
        for place in refused:
            _drop(data, _whole(place))
        for key in kept.keys() & data.keys():
            pairs = [pair for pair in zip(kept[key], data[key], strict=True) if pair[1] is not _DROPPED]
            kept[key], data[key] = [at for at, _ in pairs], [item for _, item in pairs]
        errors = [leaf for error in schemas.violations(data) for leaf in leaves(error)]
        refused = _refused(errors)
    dropped = Dropped(frozenset(doubtful | {(key,) for key in _STAND_INS if key not in data}))
    if any(dropped.touches("model", key) for key in ("base", "family", "config")):
        data["model"] = _STAND_INS["model"]  # which model it is, is unknown
    moved: dict[Place, Place] = {(key, now): (key, at) for key, old in kept.items() for now, at in enumerate(old)}
    return {**_STAND_INS, **data}, dropped, moved


def _refused(errors: list[ValidationError]) -> list[Place]:
    """The places that must go for the errors to go; the recipe itself, which lacks a key, cannot."""
    places = [place for error in errors for place in list(_unknown_keys(error)) or [tuple(error.absolute_path)]]
    return [place for place in places if place]


def _unknown_keys(error: ValidationError) -> Iterator[Place]:
    if error.validator == "additionalProperties" and error.validator_value is False:
        yield from ((*error.absolute_path, key) for key in error.instance if key not in error.schema["properties"])


def _meant(error: ValidationError) -> Iterator[Place]:
    """What an unknown key may have been meant for: the known one like it, else any that is not there."""
    for place in _unknown_keys(error):
        known = error.schema["properties"]
        guess = nearest(str(place[-1]), known)
        yield from ((*place[:-1], key) for key in ([guess] if guess else known.keys() - error.instance.keys()))


def _whole(place: Place) -> Place:
    """The least that can be dropped: a list within a table goes with its item, a source of embeddings with its key."""
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
    """The table or list that holds a place; None where it is gone already."""
    for part in place[:-1]:
        if isinstance(data, dict):
            data = data.get(part)
        else:
            data = data[part] if isinstance(data, list) and isinstance(part, int) else None
    return data


def _unusable(path: Place, value: Any) -> dict[Place, str]:
    """Numbers that JSON Schema chokes on: nan, infinities, huge ones."""
    if isinstance(value, float) and not math.isfinite(value):
        return {path: f"{value} is no usable number"}
    if isinstance(value, int) and value.bit_length() > 1000:
        return {path: "a huge number is no usable number"}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {place: text for key, item in items for place, text in _unusable((*path, key), item).items()}


def _stops(data: dict[str, Any]) -> Iterator[tuple[Place, str]]:
    """Texts of `stop_after` and `checkpoint.every` that fit the schema's pattern at most, such as "0 steps"."""
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
