"""`--from-checkpoint`: a new run begins with what an earlier one reached, wholly or as far as it fits."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import StageError
from .checkpoint import FOLDER, Checkpoint, Source, newest_checkpoint, read_checkpoint
from .difference_lines import difference_lines
from .differences import ROUNDING, Difference, input_differences
from .folder import write_whole
from .manifest_file import left_behind, why_unread
from .metrics_file import NAME as METRICS
from .metrics_file import kept_lines, row_of
from .received import inside

MOST = 20  # differences that are listed
# What may change without changing a step that is done: texts, pictures for the report, how often checkpoints come.
_FREE = ("recipe.name", "recipe.samples", "recipe.checkpoint", ROUNDING)


def open_source(place: Path, inputs: Mapping[str, Any], say: Callable[[str], None]) -> Source:
    """The newest checkpoint of a run's folder, or the one of that file. Raises StageError when there is none.

    It fits wholly when nothing differs but texts and the steps of its own stage, which may be more.
    """
    run = place if place.is_dir() else place.absolute().parent.parent
    point = newest_checkpoint(place, say) if place.is_dir() else read_checkpoint(place)
    if point is None:
        raise StageError(f"{place}: holds no checkpoint that can be read (a run's folder has them in {FOLDER}/)")
    left = left_behind(run)
    if left is None:
        has = why_unread(run) or " has no manifest.json"
        raise StageError(f"{run}:{has}, so nobody can tell what the checkpoint was made with")
    differences = [one for one in input_differences(left, inputs) if not one.within(*_FREE)]
    unfit = [one for one in differences if not (_more_steps(one, point) or _of_a_guard(one))]
    if not unfit:
        say(f"going on from {run}, after step {point.step} of stage {point.stage + 1}")
    else:
        listed = "\n  ".join(difference_lines(unfit, MOST))
        say(f"loading what fits from {run}, from step 1; what differs:\n  {listed}")
    return Source(run, run / FOLDER / point.name if place.is_dir() else place, point, not unfit)


def source_again(
    left: Mapping[str, Any], point: Checkpoint | None, inputs: Mapping[str, Any], say: Callable[[str], None]
) -> Source | None:
    """What an unfinished run began with, where it needs that still: it has no checkpoint (`point`) of its own, or
    later stages take from it. `left` is its manifest. Raises StageError when the file is gone or another one."""
    told = left.get("source")
    if told is None or (point is not None and (told["whole"] or not _trains_after(left, point.stage))):
        return None
    try:
        source = open_source(Path(told["path"]), inputs, say)
    except StageError as error:
        way = "if it lies elsewhere now, give that with --from-checkpoint"
        raise StageError(f"the run began with a checkpoint that is needed still ({way}): {error}") from error
    if source.point.sha256 != told["sha256"]:
        raise StageError(f"{told['path']}: not the checkpoint that the run began with; choose another --out")
    return source


def _trains_after(manifest: Mapping[str, Any], stage: int) -> bool:
    return any(one.get("kind") == "train" for one in manifest["recipe"].get("stage", [])[stage + 1 :])


def _more_steps(one: Difference, point: Checkpoint) -> bool:
    steps = f"recipe.stage.{point.stage + 1}.steps"
    return one.place == steps and None not in (one.old, one.new) and one.new > one.old


def _of_a_guard(one: Difference) -> bool:
    """What a guard looks for moves nothing."""
    return re.match(r"recipe\.stage\.\d+\.guard\.", one.place) is not None


def begin_from(source: Source, folder: Path) -> None:
    """Bring the earlier run's measurements up to the checkpoint, and the pictures drawn until then, into the folder of
    the one that goes on. StageError when they are not there."""
    if not source.whole:
        return
    try:
        lines = kept_lines(source.run / METRICS, source.point.facts["run"]["metrics"])
        pictures = [one["path"] for line in lines.splitlines() for one in row_of(line).get("pictures", ())]
        files = {path: inside(source.run, path) for path in pictures if path.startswith("pictures/")}
        write_whole(folder / METRICS, lines)
        for path, file in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).unlink(missing_ok=True)  # it may be a second name of a file elsewhere
            shutil.copyfile(file, folder / path)
    except (OSError, ValueError, StageError) as error:
        raise StageError(f"{source.run}: what it measured and drew cannot be taken over ({error})") from error
