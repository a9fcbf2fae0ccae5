"""Violations of the schema in a recipe, and the recipe without the violating parts, so that the rest can be checked."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pivotune import schemas

from ..text import SURELY, nearest
from .intervals import parse_interval
from .problem import KeyPath

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

# Stand-ins for required keys that were dropped; no check reports them.
_STAND_INS: dict[str, Any] = {"name": "dropped", "model": {"base": "owner/name"}, "stage": []}
_DROPPED = object()


@dataclass(frozen=True)
class Dropped:
    """Key paths of the original recipe whose values are unknown because they violate the schema."""

    key_paths: frozenset[KeyPath] = frozenset()

    def touches(self, *path: str | int) -> bool:
        """Whether the value at this key path, or a part of it, is unknown."""
        return any(key_path[: len(path)] == path[: len(key_path)] for key_path in self.key_paths)

    def lacks(self, name: str) -> bool:
        """Whether whole items of a list (`stage`) are unknown."""
        return any(key_path[0] == name and len(key_path) <= 2 for key_path in self.key_paths)

    def in_stages(self, key: str) -> bool:
        """Whether a key of some stage is unknown."""
        return any(key_path[0] == "stage" and (len(key_path) < 3 or key_path[2] == key) for key_path in self.key_paths)


@dataclass(frozen=True)
class Form:
    """Violations of the schema: `problems` as messages, `errors` as jsonschema reports them.

    In `data` the values at the `unusable` key paths are None.
    """

    data: dict[str, Any]
    problems: list[tuple[KeyPath, str]]
    errors: list[ValidationError]
    unusable: dict[KeyPath, str]


def form_of(data: dict[str, Any], limit: int) -> Form:
    """All violations of the schema, not many more than `limit`.

    A required key that is misspelt is reported as misspelt, not as missing too.
    """
    unusable = {**_unusable((), data), **dict(_intervals(data))}
    if unusable:
        data = copy.deepcopy(data)  # JSON Schema cannot compare such numbers
        for key_path in unusable:
            _table(data, key_path)[key_path[-1]] = None
    violations = list(schemas.violations(data))
    if not violations:
        return Form(data, list(unusable.items()), [], unusable)
    from .explain import explain, leaves, missing_key

    errors = [leaf for error in violations for leaf in leaves(error)]
    unknown: dict[KeyPath, list[str]] = {}
    for key_path in [key_path for error in errors for key_path in _unknown_keys(error)]:
        unknown.setdefault(key_path[:-1], []).append(str(key_path[-1]))
    problems = dict.fromkeys(unusable.items())
    for error in errors:
        path: KeyPath = tuple(error.absolute_path)
        if error.validator == "required" and nearest(missing_key(error), unknown.get(path, ()), SURELY):
            continue
        if not any(path[:end] in unusable for end in range(1, len(path) + 1)):
            problems |= dict.fromkeys(explain(error))
        if len(problems) > limit:
            break
    return Form(data, list(problems), errors, unusable)


def without_refused(form: Form) -> tuple[dict[str, Any], Dropped, dict[KeyPath, KeyPath]]:
    """The document without the violating parts, what was dropped, and the original index of the remaining list items.

    A table is dropped with a required key, a list with one of its items; of the top-level lists ([[concept]],
    [[stage]], ...) only the item is dropped.
    """
    from .explain import leaves

    data, errors, doubtful = copy.deepcopy(form.data), form.errors, set[KeyPath]()
    refused = [*form.unusable, *_refused(errors)]
    kept = {key: list(range(len(value))) for key, value in data.items() if isinstance(value, list)}
    while refused:
        intended = [key_path for error in errors for key_path in _intended_keys(error)]
        doubtful |= {_original(_smallest_droppable(key_path), kept) for key_path in (*refused, *intended)}
        for key_path in refused:
            _drop(data, _smallest_droppable(key_path))
        for key in kept.keys() & data.keys():
            pairs = [pair for pair in zip(kept[key], data[key], strict=True) if pair[1] is not _DROPPED]
            kept[key], data[key] = [at for at, _ in pairs], [item for _, item in pairs]
        errors = [leaf for error in schemas.violations(data) for leaf in leaves(error)]
        refused = _refused(errors)
    dropped = Dropped(frozenset(doubtful | {(key,) for key in _STAND_INS if key not in data}))
    if any(dropped.touches("model", key) for key in ("base", "family", "config")):
        data["model"] = _STAND_INS["model"]  # the model is unknown
    moved: dict[KeyPath, KeyPath] = {(key, now): (key, at) for key, old in kept.items() for now, at in enumerate(old)}
    return {**_STAND_INS, **data}, dropped, moved


def _refused(errors: list[ValidationError]) -> list[KeyPath]:
    """The key paths to drop so that the errors disappear; never the recipe itself."""
    found = [path for error in errors for path in list(_unknown_keys(error)) or [tuple(error.absolute_path)]]
    return [path for path in found if path]


def _unknown_keys(error: ValidationError) -> Iterator[KeyPath]:
    if error.validator == "additionalProperties" and error.validator_value is False:
        yield from ((*error.absolute_path, key) for key in error.instance if key not in error.schema["properties"])


def _intended_keys(error: ValidationError) -> Iterator[KeyPath]:
    """The keys that an unknown key may stand for: the known key of similar name, else every absent key."""
    for key_path in _unknown_keys(error):
        known = error.schema["properties"]
        guess = nearest(str(key_path[-1]), known)
        yield from ((*key_path[:-1], key) for key in ([guess] if guess else known.keys() - error.instance.keys()))


def _smallest_droppable(key_path: KeyPath) -> KeyPath:
    """The smallest part that can be dropped: a nested list instead of its item, a whole [[embeddings_from]]."""
    if key_path[:1] == ("embeddings_from",):
        return key_path[:2]
    return next((key_path[:end] for end in range(2, len(key_path)) if isinstance(key_path[end], int)), key_path)


def _original(key_path: KeyPath, kept: dict[str, list[int]]) -> KeyPath:
    if len(key_path) > 1 and key_path[0] in kept and isinstance(key_path[1], int):
        return (key_path[0], kept[str(key_path[0])][key_path[1]], *key_path[2:])
    return key_path


def _drop(data: dict[str, Any], key_path: KeyPath) -> None:
    table, key = _table(data, key_path), key_path[-1]
    if isinstance(table, dict):
        table.pop(key, None)
    elif isinstance(table, list):
        table[int(key)] = _DROPPED


def _table(data: Any, key_path: KeyPath) -> Any:
    """The table or list that contains a key path; None if it was dropped already."""
    for part in key_path[:-1]:
        if isinstance(data, dict):
            data = data.get(part)
        else:
            data = data[part] if isinstance(data, list) and isinstance(part, int) else None
    return data


def _unusable(path: KeyPath, value: Any) -> dict[KeyPath, str]:
    """Numbers that JSON Schema cannot handle: nan, infinities, huge integers."""
    if isinstance(value, float) and not math.isfinite(value):
        return {path: f"{value} is not a finite number"}
    if isinstance(value, int) and value.bit_length() > 1000:
        return {path: "the number is too large"}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {key_path: text for key, item in items for key_path, text in _unusable((*path, key), item).items()}


def _intervals(data: dict[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    """Intervals that the schema cannot check, such as "0 steps"."""
    key_paths: list[KeyPath] = [("checkpoint", "every"), ("validation", "every")]
    for name, rests in (
        ("embedding", [("stop_after",)]),
        ("embeddings_from", [("embedding", "stop_after")]),
        ("stage", [("watch", "sample_every"), ("save", "every")]),
    ):
        tables = data.get(name)
        count = len(tables) if isinstance(tables, list) else 0
        key_paths += [(name, index, *rest) for index in range(count) for rest in rests]
    for key_path in key_paths:
        table = _table(data, key_path)
        text = table.get(key_path[-1]) if isinstance(table, dict) else None
        if isinstance(text, str) and text:
            try:
                parse_interval(text, own=key_path[-1] == "stop_after")
            except ValueError as error:
                yield key_path, str(error)
