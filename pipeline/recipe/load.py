"""Reads a recipe: every problem of its form at once, each with file, line, place, cause and way out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ... import schemas
from ..errors import RecipeError
from .build import build, recipe_as_json, recipe_from_json
from .document import Document, Unreadable, find, read, refuse_deep
from .form import form_of
from .many_words import with_many_words
from .model import Recipe
from .overrides import override
from .problem import Problem

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
        return open_document(read(find(path_or_name)), overrides)
    except Unreadable as error:
        return None, None, [error.problem]


def open_document(
    document: Document, overrides: Sequence[str] = ()
) -> tuple[Recipe | None, Document | None, list[Problem]]:
    """As `open_recipe`, for a recipe that was parsed already: from a file, or out of a manifest."""
    try:
        read_so, refused = override(document, overrides, list(schemas.schema("recipe.json")["properties"]))
        refuse_deep(read_so.data)
    except Unreadable as error:
        return None, None, [error.problem]
    recipe, whole, problems = formed(read_so)
    return (None if refused else recipe), whole, [*refused, *problems]


def formed(document: Document) -> tuple[Recipe | None, Document, list[Problem]]:
    """The recipe that a document is, and the document with the words of its tables; or what keeps it from being one."""
    problems = form_problems(document)
    if problems:
        return None, document, problems
    whole, problems = with_many_words(document, MOST)
    return (None, document, problems) if problems else (build(whole.data, whole.path), whole, [])


def form_problems(document: Document) -> list[Problem]:
    """What keeps the document from being a recipe, in the order of its lines."""
    found = form_of(document.data, MOST).problems
    problems = sorted((document.problem(*pair) for pair in found[:MOST]), key=lambda problem: problem.line)
    more = [Problem("error", 0, "", f"and more; mend these {MOST} first")] if len(found) > MOST else []
    return problems + more
