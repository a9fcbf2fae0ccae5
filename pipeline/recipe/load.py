"""Reads a recipe: every problem of its form at once, each with file, line, place, cause and way out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ... import schemas
from ..errors import RecipeError
from .build import build, recipe_as_json, recipe_from_json
from .document import Document, Unreadable, find, read, refuse_deep
from .explain import explain
from .many_words import with_many_words
from .model import Recipe
from .overrides import BadOverride, override
from .problem import Place, Problem
from .stop import parse_stop

__all__ = ["load_recipe", "open_recipe", "recipe_as_json", "recipe_from_json"]

MOST = 100  # problems that are shown


def load_recipe(path_or_name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a file, or the shipped one of that name; RecipeError lists all that is wrong with its form.

    What a schema cannot see (pictures, captions, names) is `check.py`'s. Overrides are written as `train.steps=10`.
    """
    recipe, _, problems = open_recipe(path_or_name, overrides)
    if recipe is None:
        raise RecipeError([problem.shown(str(path_or_name)) for problem in problems])
    return recipe


def open_recipe(
    path_or_name: str | Path, overrides: Sequence[str] = ()
) -> tuple[Recipe | None, Document | None, list[Problem]]:
    """The recipe, or None and its problems; the document (for line numbers) is None where the file cannot be parsed."""
    try:
        document = override(read(find(path_or_name)), overrides, list(schemas.schema("recipe.json")["properties"]))
        refuse_deep(document.data)
    except (Unreadable, BadOverride) as error:
        return None, None, [error.problem]
    return formed(document)


def formed(document: Document) -> tuple[Recipe | None, Document, list[Problem]]:
    """The recipe that a document is, or what keeps it from being one; the document then has the words of its tables."""
    problems = form_problems(document)
    if not problems:
        document, problems = with_many_words(document, MOST)
    return (None if problems else build(document.data, document.path)), document, problems


def form_problems(document: Document) -> list[Problem]:
    """What keeps the document from being a recipe, in the order of its lines."""
    first: dict[Place, str] = {}
    usable = _usable((), document.data, first)
    first |= dict(_stops(document.data))
    objections = (pair for error in schemas.violations(usable) for pair in explain(error) if pair[0] not in first)
    found = list(islice(chain(first.items(), objections), MOST + 1))
    problems = sorted((document.problem(*pair) for pair in found[:MOST]), key=lambda problem: problem.line)
    more = [Problem("error", 0, "", f"and more; mend these {MOST} first")] if len(found) > MOST else []
    return problems + more


def _usable(path: Place, value: Any, found: dict[Place, str]) -> Any:
    """The value with 0.5 for numbers that JSON Schema chokes on: nan, infinities, huge ones; each is noted."""
    if isinstance(value, float) and not math.isfinite(value):
        found[path] = f"{value} is no usable number"
        return 0.5
    if isinstance(value, int) and value.bit_length() > 1000:
        found[path] = "a huge number is no usable number"
        return 0.5
    if isinstance(value, dict):
        return {key: _usable((*path, key), item, found) for key, item in value.items()}
    if isinstance(value, list):
        return [_usable((*path, index), item, found) for index, item in enumerate(value)]
    return value


def _stops(data: dict[str, Any]) -> Iterator[tuple[Place, str]]:
    words = data.get("embedding")
    sources = data.get("embeddings_from")
    texts: dict[Place, Any] = {
        ("embedding", index, "stop_after"): word.get("stop_after")
        for index, word in enumerate(words if isinstance(words, list) else [])
        if isinstance(word, dict)
    }
    for index, source in enumerate(sources if isinstance(sources, list) else []):
        if isinstance(source, dict) and isinstance(source.get("embedding"), dict):
            texts["embeddings_from", index, "embedding", "stop_after"] = source["embedding"].get("stop_after")
    checkpoint = data.get("checkpoint")
    texts["checkpoint", "every"] = checkpoint.get("every") if isinstance(checkpoint, dict) else None
    for place, text in texts.items():
        if isinstance(text, str):
            try:
                parse_stop(text, own=place[0] != "checkpoint")
            except ValueError as error:
                yield place, str(error)
