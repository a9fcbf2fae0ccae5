"""`pivotune run` and `pivotune check` as functions: `pivotune.run`, `pivotune.check`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..checks.recipe import Checked
    from ..run.runner import RunResult

AnyPath = str | PathLike[str]


def check(recipe: AnyPath, overrides: Mapping[str, Any] | None = None) -> Checked:
    """Check a recipe, its images and its captions, without torch.

    `recipe` is a file or the name of a shipped recipe, `overrides` are keys as `--set` takes them,
    `{"train.steps": 10}`.
    Returns all problems at once: `failed`, and `problems` with `severity`, `line`, `key` and `text`.
    """
    from ..checks.recipe import check_recipe

    return check_recipe(_name(recipe), _assignments(overrides), tokens=True)


def run(
    recipe: AnyPath, *, out: AnyPath | None = None, overrides: Mapping[str, Any] | None = None, fresh: bool = False,
    source: AnyPath | None = None, force: bool = False, progress: Callable[[str], None] | None = None,
) -> RunResult:  # fmt: skip
    """Run a recipe: train its embeddings, export them, and write a report. The same call resumes a run that was killed.

    `recipe` and `overrides` are as for `check`, `out` is the run folder [runs/NAME]. `fresh` starts over, `source` is a
    run folder or checkpoint to warm start from, `force` starts even if pre-flight checks fail. `progress` gets a line
    of text now and then; nothing is printed by default.

    Returns `folder` (which `load` takes), `report` and `summary`. RecipeError with all problems of a recipe, StageError
    or ConvertError for a failed run.
    """
    from ..checks.recipe import checked_recipe

    progress = progress or (lambda text: None)
    loaded, warnings = checked_recipe(_name(recipe), _assignments(overrides))
    for warning in warnings:
        progress(warning.shown(recipe))

    from ..run.runner import run_recipe
    from ..stages import STAGES

    return run_recipe(
        loaded, STAGES, out=None if out is None else Path(out), progress=progress, bar=False, fresh=fresh,
        source=None if source is None else Path(source), force=force,
    )  # fmt: skip


def _name(recipe: AnyPath) -> str | Path:
    return recipe if isinstance(recipe, str) else Path(recipe)


def _assignments(overrides: Mapping[str, Any] | None) -> list[str]:
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in (overrides or {}).items()]
