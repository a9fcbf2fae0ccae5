"""What a run stores in a checkpoint besides the state of the training, and how a checkpoint is restored."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..errors import StageError
from ..recipe.model import Recipe
from ..recipe.options import TrainOptions
from ..text import count_of
from ..train.setup import Training
from ..train.snapshot import restore_snapshot, take_snapshot
from .checkpoints import Checkpoint
from .context import RunContext, RunState

LOADED = "loaded "  # the beginning of the note on what a stage loaded from the checkpoint of a warm start


def require_fitting(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """StageError when a checkpoint cannot be one of this recipe: its stage, its step or its finished stages differ."""
    kinds = [stage.kind for stage in recipe.stages]
    steps = {index: options.steps for index, options in recipe.stages_with(TrainOptions)}
    index, step = checkpoint.stage, checkpoint.step
    found = [row["kind"] for row in checkpoint.facts["run"]["rows"]]
    if index not in steps:
        wrong = f"stage {index + 1} of the recipe is no train stage"
    elif not 1 <= step <= steps[index]:
        wrong = f"stage {index + 1} has {count_of(steps[index], 'step')}; the checkpoint is of step {step}"
    elif found != kinds[: index + 1]:
        wrong = f"its stages are {', '.join(found) or 'none'}; the recipe's are {', '.join(kinds[: index + 1])}"
    else:
        return
    raise StageError(f"the checkpoint {checkpoint.name} does not fit the recipe ({wrong}); delete it, or use --fresh")


def checkpoint_if_due(
    context: RunContext, state: RunState, training: Training, step: int, before: float, seconds: float, *,
    now: bool = False,
) -> None:  # fmt: skip
    """After each step, which began `before` seconds into the stage: write a checkpoint if one is due, or if `now`.

    Raises Stopped when a signal has come.
    """

    def snapshot() -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, facts = take_snapshot(training, state.trained.weights)
        own = {
            "metrics": context.metrics.settled(),
            "stopped_at": state.trained.stopped_at,
            "reached": sorted(state.trained.reached),
            "warnings": state.warnings,
            "rows": state.rows,
            "loaded": sorted(state.loaded),
        }
        return tensors, {**facts, "run": own}

    clock = training.clock(step, seconds)
    context.checkpointer.after_step(state.stage, clock, before, snapshot, now=now)


def has_steps_left(context: RunContext, state: RunState, index: int) -> bool:
    """Whether the stage with this index or a later one trains beyond what a checkpoint has."""
    checkpoint = state.checkpoint
    done = (checkpoint.stage, checkpoint.step) if checkpoint is not None else (-1, 0)
    return any((at, options.steps) > done for at, options in context.recipe.stages_with(TrainOptions, index))


def restore_training(context: RunContext, state: RunState, training: Training) -> tuple[int, float]:
    """Restore the checkpoint of this stage, if there is one; return the steps that are done and their seconds.

    Raises StageError when it does not fit.
    """
    checkpoint = state.checkpoint
    if checkpoint is None or checkpoint.stage != state.stage:
        if context.source is not None:
            from .warm_start import load_what_fits

            load_what_fits(context, state, training)
        return 0, 0.0
    facts = checkpoint.facts["run"]
    try:
        restore_snapshot(training, state.trained.weights, checkpoint.tensors, checkpoint.facts)
    except (LookupError, TypeError, ValueError, AttributeError) as error:  # written by another program
        raise StageError(
            f"the checkpoint {checkpoint.name} cannot be restored ({error}); delete it, or use --fresh"
        ) from error
    state.notes += [note for note in state.stored_row(state.stage)["notes"] if note.startswith(LOADED)]
    state.trained.stopped_at, state.trained.reached = dict(facts["stopped_at"]), set(facts["reached"])
    state.warnings[:] = facts["warnings"]  # the same list: exporters append to it
    state.checkpoint = None
    return checkpoint.step, checkpoint.seconds
