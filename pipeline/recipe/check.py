"""What a schema cannot see: pictures, captions, names, the order of stages. Needs no torch and loads no model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pivotune.pipeline.errors import RecipeError

from .load import open_recipe
from .model import Recipe
from .problem import Problem


def check_recipe(path_or_name: str | Path, overrides: Sequence[str] = ()) -> tuple[Recipe | None, list[Problem]]:
    """The recipe and all that is wrong with it; no recipe where its form is wrong."""
    recipe, document, problems = open_recipe(path_or_name, overrides)
    if recipe is None or document is None:
        return None, problems
    return recipe, problems


def checked_recipe(path_or_name: str | Path, overrides: Sequence[str] = ()) -> tuple[Recipe, list[Problem]]:
    """A recipe without errors and its warnings; RecipeError lists every error and warning otherwise."""
    recipe, problems = check_recipe(path_or_name, overrides)
    if recipe is None or any(problem.severity == "error" for problem in problems):
        raise RecipeError([problem.shown(str(path_or_name)) for problem in problems])
    return recipe, problems
