"""Repeats a finished run in another folder and compares everything that it made."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from ..checks.recipe import check_document
from ..errors import StageError
from ..files import sha256
from ..recipe.document import Document
from ..recipe.intervals import Every
from ..recipe.load import recipe_as_json
from ..recipe.model import Recipe
from ..recipe.options import TrainOptions
from ..records import manifest_or_none, read_rows, unreadable_reason
from ..run_folder import file_inside
from ..text import count_of
from .context import StageFunction
from .diff import input_differences
from .runner import run_recipe

NO_RESUME = "a replay cannot be resumed: the same command starts over in another folder"


@dataclass(frozen=True)
class Replayed:
    """The folder of the second run, the differences in order of time, and how much was compared."""

    folder: Path
    differences: tuple[str, ...]
    inputs: tuple[str, ...]
    steps: int
    files: int


def replay(
    folder: Path,
    stages: Mapping[str, StageFunction],
    *,
    out: Path | None,
    progress: Callable[[str], None],
    bar: bool,
    overrides: Sequence[str] = (),
) -> Replayed:
    """Repeat the run of `folder` in `out` (default: `<folder>-replay` next to it, or with a number).

    The run keeps its name, after which files are named, and starts as the first did: from its source, if it had one.
    Raises StageError when the folder contains no finished run, the source is missing, or the second run fails.
    """
    before = manifest_or_none(folder)
    if before is None:
        why = unreadable_reason(folder) or " (no readable manifest.json)"
        raise StageError(f"{folder}: contains no run{why}")
    if before["status"] != "finished":
        raise StageError(f"{folder}: the run is not finished; resume it with `pivotune run` and its recipe")
    text = file_inside(folder, "recipe.toml")
    recipe = _recipe(folder, before, overrides)
    again = _without_outside_effects(_stopped_by_steps(recipe, before))
    result = run_recipe(
        again, stages, out=out or _replay_folder(folder), progress=progress, bar=bar, fresh=True,
        source=_source(before), resume_hint=NO_RESUME, text=text,
    )  # fmt: skip
    after = manifest_or_none(result.folder)
    assert after is not None
    inputs = [str(one) for one in input_differences({**before, "recipe": recipe_as_json(again)}, after)]
    if after["source"] and after["source"]["sha256"] != before["source"]["sha256"]:
        inputs.append(f"{after['source']['path']} is not the checkpoint that the run started from")
    timed = _timed_columns(recipe)
    if timed:
        names = " and ".join(sorted({"saves" if name == "saved" else name for _, name in timed}))
        progress(f"not compared: the steps of {names}, which depend on time")
    differences = [*_metrics(folder, result.folder, timed), *_files(folder, result.folder, before, after)]
    steps = sum(1 for _ in _rows(result.folder, timed))
    return Replayed(result.folder, tuple(differences), tuple(inputs), steps, len(_compared_files(before)))


def _recipe(folder: Path, before: Mapping[str, Any], overrides: Sequence[str]) -> Recipe:
    """The recipe of a manifest, which may come from someone else: checked as a recipe file is."""
    place = Path(before.get("recipe_file", ""))
    if not place.is_absolute():  # as of another operating system
        place = (folder / "recipe.toml").absolute()
    checked = check_document(Document(place, "", before["recipe"]), overrides)
    if checked.recipe is None or checked.failed:
        wrong = [problem for problem in checked.problems if problem.severity == "error"]
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        hint = "give moved files and folders with --set, for example --set 'concept.1.images=\"...\"'"
        raise StageError(f"manifest.json: {wrong[0].shown('recipe')}{more}; {hint}")
    return checked.recipe


def _without_outside_effects(recipe: Recipe) -> Recipe:
    """The recipe without what writes outside the folder of the second run (cached latents, class images, trackers);
    none of that changes its result."""
    place = recipe.data.cache_latents
    data = recipe.data if place in ("memory", "off", "run", "user") else replace(recipe.data, cache_latents="run")
    stages = tuple(
        replace(stage, options=replace(stage.options, watch=replace(stage.options.watch, trackers=())))
        if isinstance(stage.options, TrainOptions) and stage.options.watch
        else stage
        for stage in recipe.stages
    )
    concepts = tuple(replace(concept, generate=None) for concept in recipe.concepts)
    return replace(recipe, data=data, stages=stages, concepts=concepts)


def _source(before: Mapping[str, Any]) -> Path | None:
    """The checkpoint that the run started from; one that it continued exactly may be missing: it is not needed."""
    source = before.get("source")
    if source is None or (source["continues"] and not Path(source["path"]).is_file()):
        return None
    return Path(source["path"])


def _replay_folder(folder: Path) -> Path:
    """A folder next to the run's that does not exist yet."""
    place = Path(os.path.abspath(folder))
    names = (f"{place.name}-replay{'' if number == 1 else f'-{number}'}" for number in count(1))
    return next(place.with_name(name) for name in names if not os.path.lexists(place.with_name(name)))


def _stopped_by_steps(recipe: Recipe, before: Mapping[str, Any]) -> Recipe:
    """The recipe in which embeddings that stopped after a time stop at the same step instead."""
    stopped = {embedding["placeholder"]: embedding["stopped_at"] for embedding in before["embeddings"]}
    embeddings = []
    for embedding in recipe.embeddings:
        if embedding.stop_after.by_time:
            at = stopped.get(embedding.placeholder)
            embedding = replace(embedding, stop_after=Every(at, "steps") if at else Every(0.0, "never"))
        embeddings.append(embedding)
    return replace(recipe, embeddings=tuple(embeddings))


def _timed_columns(recipe: Recipe) -> set[tuple[int, str]]:
    """Columns of the metrics, by stage (from 1) and name, whose steps depend on time and differ between two runs.

    Sample images and saves do not change the training.
    """
    found = set()
    for index, options in recipe.stages_with(TrainOptions):
        watch, save = options.watch, options.save
        for name, every in (("images", watch.sample_every if watch else None), ("saved", save.every if save else None)):
            if every and every.by_time:
                found.add((index + 1, name))
    return found


def _rows(folder: Path, timed: Collection[tuple[int, str]]) -> Iterator[dict[str, Any]]:
    for row in read_rows(folder):
        if row is None:
            raise StageError(f"{folder / 'metrics.jsonl'}: has an unreadable line")
        row.pop("seconds", None)
        yield {name: value for name, value in row.items() if (row["stage"], name) not in timed}


def _metrics(one: Path, other: Path, timed: Collection[tuple[int, str]]) -> Iterator[str]:
    """The first step whose row of metrics differs outside `timed`, with the first value that does."""
    rows, others = list(_rows(one, timed)), list(_rows(other, timed))
    for row, second in zip(rows, others, strict=False):
        if row != second:
            name = next(key for key in row if row.get(key) != second.get(key))
            place = f"step {row['step']} of stage {row['stage']}"
            yield f"metrics, {place}: {name} was {row.get(name)}, is {second.get(name)}"
            return
    if len(rows) != len(others):
        yield f"metrics: {count_of(len(rows), 'line')}, then {len(others)}"


def _compared_files(manifest: Mapping[str, Any]) -> list[str]:
    """Every file of a run that must be the same in a replay."""
    texts = {row["path"] for row in manifest["artefacts"] if row["kind"] == "text"}
    paths = [row["path"] for row in [*manifest["artefacts"], *manifest["images"]]]
    return [path for path in dict.fromkeys(paths) if path not in texts]


def _files(one: Path, other: Path, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    made = _compared_files(after)
    for path in _compared_files(before):
        if path not in made:
            yield f"{path}: missing in the replay"
            continue
        try:
            first = file_inside(one, path)
        except StageError as error:
            yield f"{path}: missing in {one} ({error})"
            continue
        if sha256(first) != sha256(other / path):
            yield f"{path}: different bytes"
    for path in made:
        if path not in _compared_files(before):
            yield f"{path}: only in the replay"
