"""`--set key=value`: changes a parsed recipe before it is checked."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import tomli

from ..text import nearest
from .document import Document
from .options import STAGE_OPTIONS
from .problem import KeyPath, Problem


class BadOverride(Exception):
    """A --set option that cannot be applied; `problem` says why."""

    def __init__(self, text: str, cause: str) -> None:
        super().__init__(cause)
        self.problem = Problem("error", 0, f"--set {text}", cause)


def override(document: Document, overrides: Sequence[str], top_level: Sequence[str]) -> tuple[Document, list[Problem]]:
    """The document with every `key=value` applied in order, and the problems of those that cannot be applied.

    A key is what messages show: `seed`, `model.base`, `stage.3.steps` (items of lists are counted from 1), and for
    stages also the kind: `train.steps`, or `train.2.steps` if there are several. A list of one table needs no number.
    The value is TOML; anything else is taken as a string, so that `--set device=cpu` works.
    """
    data, written, problems = copy.deepcopy(document.data), dict(document.overridden), []
    for text in overrides:
        try:
            written[_apply(data, text, top_level)] = text
        except BadOverride as error:
            problems.append(error.problem)
    return replace(document, data=data, overridden=written), problems


def _apply(data: dict[str, Any], text: str, top_level: Sequence[str]) -> KeyPath:
    """Apply one `key=value` to the data; returns its key path."""
    name, equals, value = text.partition("=")
    parts = [part.strip() for part in name.split(".")]
    if not equals or not name.strip():
        raise BadOverride(text, "is not of the form KEY=VALUE, for example train.steps=10")
    if not all(parts):
        raise BadOverride(text, f"the key has an empty part; did you mean {'.'.join(filter(None, parts))}?")
    path = _path(data, parts, top_level, text)
    _write(data, path, _value(value), text)
    return path


def _value(text: str) -> Any:
    try:
        parsed = tomli.loads(f"value = {text}")
    except (tomli.TOMLDecodeError, RecursionError, ValueError):
        return text.strip()
    return parsed["value"] if len(parsed) == 1 else text.strip()


def _path(data: dict[str, Any], parts: list[str], top_level: Sequence[str], text: str) -> KeyPath:
    stages = data.get("stage")
    kinds = [str(_child(stage, "kind")) for stage in stages] if isinstance(stages, list) else []
    path: list[str | int]
    if parts[0] in kinds and parts[0] not in top_level:
        number, parts = _stage(kinds, parts, text)
        path = ["stage", number]
    elif parts[0] in top_level:
        path, parts = [parts[0]], parts[1:]
    else:
        raise BadOverride(text, _unknown(parts[0], top_level, kinds))
    for part in parts:
        value = _at(data, path)
        path += _step(value, part, text) if isinstance(value, list) else [part]
    return tuple(path)


def _unknown(name: str, top_level: Sequence[str], kinds: Sequence[str]) -> str:
    """Why the first part of a key is neither a key of the recipe nor one of its stages."""
    stages = f"its stages: {', '.join(dict.fromkeys(kinds)) or 'none'}"
    if name in STAGE_OPTIONS:
        return f"the recipe has no {name} stage; {stages}"
    guess = nearest(name, [*top_level, *kinds])
    hint = f"did you mean '{guess}'?" if guess else f"known: {', '.join(top_level)}; {stages}"
    return f"unknown key '{name}'; {hint}"


def _stage(kinds: Sequence[str], parts: list[str], text: str) -> tuple[int, list[str]]:
    """The index of the stage that a kind refers to, and the rest of the key."""
    same = [number for number, kind in enumerate(kinds) if kind == parts[0]]
    numbered = len(parts) > 1 and parts[1].isdecimal()
    if numbered and 1 <= int(parts[1][:9]) <= len(same):
        return same[int(parts[1]) - 1], parts[2:]
    if numbered or len(same) > 1:
        ways = " or ".join(".".join([parts[0], str(n + 1), *parts[1 + numbered :]]) for n in range(min(len(same), 3)))
        raise BadOverride(text, f"stages of kind '{parts[0]}': {len(same)}; write {ways}")
    return same[0], parts[1:]


def _step(tables: list[Any], part: str, text: str) -> list[str | int]:
    if part.isdecimal() and 1 <= int(part[:9]) <= len(tables):
        return [int(part) - 1]
    if part.isdecimal():
        raise BadOverride(text, f"no item {part[:9]}; the recipe has {len(tables)} (counted from 1)")
    if len(tables) == 1:
        return [0, part]
    raise BadOverride(text, f"the recipe has {len(tables)} of them; put a number before '{part}' (counted from 1)")


def _at(value: Any, path: Sequence[str | int]) -> Any:
    for part in path:
        value = _child(value, part)
    return value


def _child(value: Any, part: str | int) -> Any:
    if isinstance(value, dict):
        return value.get(part)
    return value[part] if isinstance(value, list) and isinstance(part, int) else None


def _write(data: dict[str, Any], path: KeyPath, value: Any, text: str) -> None:
    target: Any = data
    for part in path[:-1]:
        target = target.setdefault(part, {}) if isinstance(target, dict) else _child(target, part)
    last = path[-1]
    fits = isinstance(target, dict) or (isinstance(target, list) and isinstance(last, int))
    if not fits:
        raise BadOverride(text, f"'{path[-2]}' is not a table; it cannot have a key '{last}'")
    target[last] = value
