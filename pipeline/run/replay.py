"""Runs a finished run again, elsewhere, and holds everything it made against what is there."""

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
from .context import StageFunction
from .diff import input_differences
from .runner import run_recipe

NO_RESUME = "a replay cannot be resumed: the same command starts over in another folder"


@dataclass(frozen=True)
class Replayed:
    """Where the second run lies; what differs, in the order in which it came about; how much was compared."""

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
    """Run the recipe of `folder` again, into `out` (left out: `<folder>-replay` beside it, or with a number).

    The run keeps its name, by which files are called, and begins where the first did: with its source, if it had one.
    Raises StageError when the folder holds no finished run, that source is gone, or the second run fails.
    """
    before = manifest_or_none(folder)
    if before is None:
        why = unreadable_reason(folder) or " (no manifest.json that can be read)"
        raise StageError(f"{folder}: holds no run{why}")
    if before["status"] != "finished":
        raise StageError(f"{folder}: the run has not finished; `pivotune run` with its recipe goes on with it")
    text = file_inside(folder, "recipe.toml")
    recipe = _recipe(folder, before, overrides)
    again = _within(_stopped_by_steps(recipe, before))
    result = run_recipe(
        again, stages, out=out or _beside(folder), progress=progress, bar=bar, fresh=True, source=_source(before),
        resume_hint=NO_RESUME, text=text,
    )  # fmt: skip
    after = manifest_or_none(result.folder)
    assert after is not None
    inputs = [str(one) for one in input_differences({**before, "recipe": recipe_as_json(again)}, after)]
    if after["source"] and after["source"]["sha256"] != before["source"]["sha256"]:
        inputs.append(f"{after['source']['path']} is another checkpoint than the one that the run began with")
    loose = _by_the_clock(recipe)
    if loose:
        names = " and ".join(sorted({"saves" if name == "saved" else name for _, name in loose}))
        progress(f"not compared: at which steps there were {names}: time chose them")
    differences = [*_metrics(folder, result.folder, loose), *_files(folder, result.folder, before, after)]
    steps = sum(1 for _ in _rows(result.folder, loose))
    return Replayed(result.folder, tuple(differences), tuple(inputs), steps, len(_made(before)))


def _recipe(folder: Path, before: Mapping[str, Any], overrides: Sequence[str]) -> Recipe:
    """The recipe of a manifest, which another may have written: through the same checks as a recipe's file."""
    place = Path(before.get("recipe_file", ""))
    if not place.is_absolute():  # as of another operating system
        place = (folder / "recipe.toml").absolute()
    checked = check_document(Document(place, "", before["recipe"]), overrides)
    if checked.recipe is None or checked.failed:
        wrong = [problem for problem in checked.problems if problem.severity == "error"]
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        hint = "what lies elsewhere now is given with --set, as --set 'concept.1.images=\"...\"'"
        raise StageError(f"manifest.json: {wrong[0].shown('recipe')}{more}; {hint}")
    return checked.recipe


def _within(recipe: Recipe) -> Recipe:
    """The recipe without all that would write outside the folder of the second run, and changes no byte of it: where
    encoded images are kept, class images that are drawn, trackers."""
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
    """The checkpoint that the run began with. One that it only went on from may be gone: all its steps can be made."""
    told = before.get("source")
    if told is None or (told["whole"] and not Path(told["path"]).is_file()):
        return None
    return Path(told["path"])


def _beside(folder: Path) -> Path:
    """A folder beside the run's that is not there yet."""
    place = Path(os.path.abspath(folder))
    names = (f"{place.name}-replay{'' if number == 1 else f'-{number}'}" for number in count(1))
    return next(place.with_name(name) for name in names if not os.path.lexists(place.with_name(name)))


def _stopped_by_steps(recipe: Recipe, before: Mapping[str, Any]) -> Recipe:
    """An embedding that the clock stopped is stopped at the same step again: no machine keeps time twice the same
    way.
    """
    stopped = {embedding["placeholder"]: embedding["stopped_at"] for embedding in before["embeddings"]}
    embeddings = []
    for embedding in recipe.embeddings:
        if embedding.stop_after.by_time:
            at = stopped.get(embedding.placeholder)
            embedding = replace(embedding, stop_after=Every(at, "steps") if at else Every(0.0, "never"))
        embeddings.append(embedding)
    return replace(recipe, embeddings=tuple(embeddings))


def _by_the_clock(recipe: Recipe) -> set[tuple[int, str]]:
    """What of the metrics, by stage (from 1) and name, stands at steps that the clock chose: no two runs have the same.

    Images while a stage trains and saves change nothing of what is learnt.
    """
    found = set()
    for index, options in recipe.stages_with(TrainOptions):
        watch, save = options.watch, options.save
        for name, every in (("images", watch.sample_every if watch else None), ("saved", save.every if save else None)):
            if every and every.by_time:
                found.add((index + 1, name))
    return found


def _rows(folder: Path, loose: Collection[tuple[int, str]]) -> Iterator[dict[str, Any]]:
    for row in read_rows(folder):
        if row is None:
            raise StageError(f"{folder / 'metrics.jsonl'}: has a line that cannot be read")
        row.pop("seconds", None)
        yield {name: value for name, value in row.items() if (row["stage"], name) not in loose}


def _metrics(one: Path, other: Path, loose: Collection[tuple[int, str]]) -> Iterator[str]:
    """The first step whose line of metrics differs but in what is `loose`, with the first number in it that does."""
    rows, others = list(_rows(one, loose)), list(_rows(other, loose))
    for row, second in zip(rows, others, strict=False):
        if row != second:
            name = next(key for key in row if row.get(key) != second.get(key))
            place = f"step {row['step']} of stage {row['stage']}"
            yield f"metrics, {place}: {name} was {row.get(name)}, is {second.get(name)}"
            return
    if len(rows) != len(others):
        yield f"metrics: {len(rows)} lines, then {len(others)}"


def _made(manifest: Mapping[str, Any]) -> list[str]:
    """Every file that a run made and that must come out the same."""
    texts = {row["path"] for row in manifest["artefacts"] if row["kind"] == "text"}
    paths = [row["path"] for row in [*manifest["artefacts"], *manifest["images"]]]
    return [path for path in dict.fromkeys(paths) if path not in texts]


def _files(one: Path, other: Path, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    made = _made(after)
    for path in _made(before):
        if path not in made:
            yield f"{path}: not made again"
            continue
        try:
            first = file_inside(one, path)
        except StageError as error:
            yield f"{path}: no longer in {one} ({error})"
            continue
        if sha256(first) != sha256(other / path):
            yield f"{path}: other bytes"
    for path in made:
        if path not in _made(before):
            yield f"{path}: made only now"
