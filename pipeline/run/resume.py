"""What a run must know, beside the training's own state, to go on from a checkpoint as if it had never stopped."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import StageError
from ..recipe.intervals import Clock
from ..recipe.options import TrainOptions
from ..run_folder import file_inside
from ..train.setup import Training
from ..train.snapshot import restore_snapshot, take_snapshot
from .checkpoints import Checkpoint
from .context import Run
from .warm_start import LOADED, take_what_fits

_PATH = "path in the run"


def run_facts(run: Run) -> dict[str, Any]:
    """The run's side of a checkpoint, as JSON."""
    return {
        "metrics": run.metrics.settled(),
        "stopped_at": run.stopped_at,
        "reached": sorted(run.reached),
        "warnings": run.warnings,
        "artefacts": run.artefacts,
        "data": _packed(run.data, run.folder),
        "rows": run.rows,
        "taken": sorted(run.taken),
    }


def restore_run(run: Run, checkpoint: Checkpoint | None) -> Mapping[str, Any] | None:
    """Put the run's side of a checkpoint back; what was made after it is taken away, for it is made again.

    Returns what of the metrics belongs to it (see `metrics.Metrics.settled`).
    """
    run.resume = checkpoint
    facts: Mapping[str, Any] = checkpoint.facts["run"] if checkpoint else {}
    run.done_rows = list(facts.get("rows", []))
    run.taken = set(facts.get("taken", []))
    run.restored = facts
    if run.processes.main:
        _forget_later(run.folder, {row["path"] for row in facts.get("artefacts", [])})
    return facts.get("metrics")


def checkpoint_if_due(
    run: Run, training: Training, step: int, before: float, seconds: float, *, now: bool = False
) -> None:
    """After each step, which began `before` seconds into the stage: a checkpoint if one is due, or asked for `now`.

    Raises Stopped when a signal has asked for an end.
    """

    def state() -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, facts = take_snapshot(training, run.moved)
        return tensors, {**facts, "run": run_facts(run)}

    clock = Clock(step, training.steps, training.steps_per_epoch, seconds)
    run.checkpointer.after_step(run.stage, clock, before, state, now=now)


def steps_left(run: Run, number: int) -> bool:
    """Whether stage `number` (from 0) or a later one trains, beyond what a checkpoint has."""
    point = run.resume
    done = (point.stage, point.step) if point is not None else (-1, 0)
    return any((at, options.steps) > done for at, options in run.recipe.stages_with(TrainOptions, number))


def restore_training(run: Run, training: Training) -> tuple[int, float]:
    """Put the checkpoint of this stage back, if there is one; return the steps that are done and their seconds.

    Raises StageError when it does not fit.
    """
    point = run.resume
    if point is None or point.stage != run.stage:
        take_what_fits(run, training)
        return 0, 0.0
    try:
        restore_snapshot(training, run.moved, point.tensors, point.facts)
        facts = run.restored
        run.data = _unpacked(facts["data"], run.folder)
        run.notes += [note for note in run.done_rows[run.stage]["notes"] if note.startswith(LOADED)]
    except (LookupError, TypeError, ValueError, AttributeError) as error:  # its trees are another program's
        raise StageError(
            f"the checkpoint {point.name} cannot be put back ({error}); delete it, or use --fresh"
        ) from error
    run.stopped_at, run.reached = dict(facts["stopped_at"]), set(facts["reached"])
    run.warnings, run.artefacts = list(facts["warnings"]), list(facts["artefacts"])
    run.resume = None
    return point.step, point.seconds


def _forget_later(folder: Path, kept: set[str]) -> None:
    """Remove exports that an unfinished stage had begun to write; those of stages that were done stay."""
    exports = folder / "exports"
    if not kept:
        shutil.rmtree(exports, ignore_errors=True)
        return
    for path in exports.rglob("*"):
        if path.is_file() and path.relative_to(folder).as_posix() not in kept:
            path.unlink()


def _packed(value: Any, folder: Path) -> Any:
    if isinstance(value, Path):
        return {_PATH: value.relative_to(folder).as_posix()}
    if isinstance(value, dict):
        return {key: _packed(one, folder) for key, one in value.items()}
    return [_packed(one, folder) for one in value] if isinstance(value, (list, tuple)) else value


def _unpacked(value: Any, folder: Path) -> Any:
    if isinstance(value, dict) and _PATH in value:
        return file_inside(folder, value[_PATH])
    if isinstance(value, dict):
        return {key: _unpacked(one, folder) for key, one in value.items()}
    return [_unpacked(one, folder) for one in value] if isinstance(value, list) else value
