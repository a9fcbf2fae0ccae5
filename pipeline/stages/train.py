"""Stage `train`: trains embeddings, LoRAs and weights of the model, in any combination; the rest is frozen."""

from __future__ import annotations

from functools import partial

from ...converters.embedding import Contents
from ..export.finished import Finished
from ..recipe.options import RescaleOptions, TrainOptions
from ..run.context import RunContext, RunState, export_context, warn
from ..run.steps import load_into_model, read_from_model, run_steps
from ..run.training import build_dataset, build_objective, build_trainables, build_training
from ..train.compute import compiled, gradient_checkpointing
from ..train.guard import Guard
from .rescale import rescaled


def train(context: RunContext, state: RunState, contents: Contents, options: TrainOptions) -> Contents:
    """Train for `steps` optimizer steps (changes the injected rows, and what `lora` and `finetune` name).

    Returns the trained vectors and, in `rest`, the LoRA; fine-tuned parts are added to `state.trained.finetuned`.
    Raises StageError when a value is not finite (the last good vectors are then in `last-good/` of the run's folder) or
    an embedding's vector gets no gradient.
    """
    injection = state.require_injection()
    load_into_model(injection, contents)
    guard = Guard(options.guard, partial(warn, context, state))
    as_exported = partial(_as_exported, context, state.stage, state.initial)
    finished = Finished(export_context(context, state), contents, as_exported)
    trainables = build_trainables(context, state, options, finished)
    objective = build_objective(context, state, options)
    if state.checkpoint is not None and state.stage < state.checkpoint.stage:
        for trainable in trainables:  # the checkpoint of a later stage has the values of what was built here
            trainable.finish()
        return read_from_model(context.model, injection, contents)
    dataset = build_dataset(context, state, options)
    training = build_training(context, state, trainables, objective, dataset, guard, options)
    with (
        compiled(context.model.denoiser, options.compile),
        gradient_checkpointing(context.model, options.gradient_checkpointing),
    ):
        run_steps(context, state, training, contents, finished, options)
    return state.latest or contents


def _as_exported(context: RunContext, index: int, initial: Contents, contents: Contents) -> Contents:
    """The embeddings as the stages after the one with this `index` change them before they are exported."""
    for _, options in context.recipe.stages_with(RescaleOptions, index + 1):
        contents, _ = rescaled(context, initial, contents, options)
    return contents
