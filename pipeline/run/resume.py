"""What a run must know, beside the training's own state, to go on from a checkpoint as if it had never stopped."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import StageError
from ..recipe.intervals import Clock
from ..run_folder import inside
from ..train.setup import Training
from ..train.snapshot import restore_snapshot, take_snapshot
from .checkpoints import Checkpoint
from .context import RunContext, RunState
from .warm_start import LOADED, take_what_fits

_PATH = "path in the run"


def run_facts(context: RunContext, state: RunState) -> dict[str, Any]:
    """The run's side of a checkpoint, as JSON."""
    return {
        "metrics": context.metrics.settled(),
        "stopped_at": state.trained.stopped_at,
        "reached": sorted(state.trained.reached),
        "warnings": state.warnings,
        "artefacts": state.artefacts,
        "data": _packed(state.exports, context.folder),
        "rows": state.rows,
        "taken": sorted(state.loaded),
    }


def restore_run(context: RunContext, state: RunState, checkpoint: Checkpoint | None) -> Mapping[str, Any] | None:
    """Put the run's side of a checkpoint back; what was made after it is taken away, for it is made again.

    Returns what of the metrics belongs to it (see `metrics.Metrics.settled`).
    """
    state.checkpoint = checkpoint
    facts: Mapping[str, Any] = checkpoint.facts["run"] if checkpoint else {}
    run.done_rows = list(facts.get("rows", []))
    state.loaded = set(facts.get("taken", []))
    run.restored = facts
    if context.processes.main:
        _forget_later(context.folder, {row["path"] for row in facts.get("artefacts", [])})
    return facts.get("metrics")


def checkpoint_if_due(
    context: RunContext, state: RunState, training: Training, step: int, before: float, seconds: float, *, now: bool = False
) -> None:
    """After each step, which began `before` seconds into the stage: a checkpoint if one is due, or asked for `now`.

    Raises Stopped when a signal has asked for an end.
    """

    def state() -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, facts = take_snapshot(training, state.trained.weights)
        return tensors, {**facts, "run": run_facts(context, state)}

    clock = Clock(step, training.steps, training.steps_per_epoch, seconds)
    context.checkpointer.after_step(state.stage, clock, before, state, now=now)


def steps_left(context: RunContext, state: RunState, number: int) -> bool:
    """Whether stage `number` (from 0) or a later one trains, beyond what a checkpoint has."""
    point = state.checkpoint
    done = (point.stage, point.step) if point is not None else (-1, 0)
    stages = list(enumerate(context.recipe.stages))[number:]
    steps = [(at, stage.options["steps"]) for at, stage in stages if stage.kind == "train"]
    return any(last > done for last in steps)


def restore_training(context: RunContext, state: RunState, training: Training) -> tuple[int, float]:
    """Put the checkpoint of this stage back, if there is one; return the steps that are done and their seconds.

    Raises StageError when it does not fit.
    """
    point = state.checkpoint
    if point is None or point.stage != state.stage:
        take_what_fits(context, state, training)
        return 0, 0.0
    try:
        restore_snapshot(training, state.trained.weights, point.tensors, point.facts)
        facts = run.restored
        state.exports = _unpacked(facts["data"], context.folder)
        state.notes += [note for note in run.done_rows[state.stage]["notes"] if note.startswith(LOADED)]
    except (LookupError, TypeError, ValueError, AttributeError) as error:  # its trees are another program's
        raise StageError(
            f"the checkpoint {point.name} cannot be put back ({error}); delete it, or use --fresh"
        ) from error
    state.trained.stopped_at, state.trained.reached = dict(facts["stopped_at"]), set(facts["reached"])
    state.warnings, state.artefacts = list(facts["warnings"]), list(facts["artefacts"])
    state.checkpoint = None
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
        return inside(folder, value[_PATH])
    if isinstance(value, dict):
        return {key: _unpacked(one, folder) for key, one in value.items()}
    return [_unpacked(one, folder) for one in value] if isinstance(value, list) else value
