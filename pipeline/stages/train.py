"""Stage `train`: embeddings, LoRAs and weights of the model, in any combination; the rest stands still."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ...converters.embedding import Contents
from ..export.finished import Finished
from ..recipe.defaults import defaults
from ..run.context import RunContext, RunState, export_context, warn
from ..run.steps import load_into_model, read_from_model, run_steps
from ..run.training import build_dataset, build_objective, build_trainables, build_training
from ..train.compute import compiled, less_memory
from ..train.embeddings import EmbeddingSettings
from ..train.guard import Guard
from ..train.optimizers import rate_factor
from ..train.setup import Common
from .rescale import rescaled

OBJECTIVE, NOISE, TIMESTEPS, GUARD = (
    defaults(f"tables/{name}.json") for name in ("objective", "noise", "timesteps", "guard")
)
ADAMW = {"kind": "adamw", "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": None}


def train(
    context: RunContext,
    state: RunState,
    contents: Contents,
    *,
    steps: int,
    batch_size: int = 1,
    embeddings: bool = True,
    learning_rate: float | Mapping[str, float] = 5e-3,
    lora: Sequence[Mapping[str, Any]] | None = None,
    finetune: Sequence[Mapping[str, Any]] | None = None,
    optimizer: Mapping[str, Any] = ADAMW,
    schedule: str | Mapping[str, Any] = "constant",
    warmup_steps: float = 0,
    clip_norm: float = 1.0,
    ema: float | None = None,
    gradient_accumulation: int = 1,
    gradient_checkpointing: bool = False,
    preserve_norm: Any = None,
    resolution: int | None = None,
    flip: bool = False,
    caption_dropout: float = 0.0,
    log_every: int = 1,
    objective: Mapping[str, Any] = OBJECTIVE,
    noise: Mapping[str, Any] = NOISE,
    timesteps: Mapping[str, Any] = TIMESTEPS,
    prior_weight: float = 1.0,
    locality: Mapping[str, Any] | None = None,
    watch: Mapping[str, Any] | None = None,
    save: Mapping[str, Any] | None = None,
    guard: Mapping[str, Any] = GUARD,
    compile: bool = False,
    shard_optimizer_from: int = 1000,
) -> Contents:
    """Train for `steps` optimizer steps (changes the injected rows, and what `lora` and `finetune` name).

    Returns the trained vectors and, in `rest`, the LoRA; fine-tuned parts are added to `state.trained.finetuned`.
    Raises StageError when a value is not finite (the last good vectors are then in `last-good/` of the run's folder) or
    an embedding's vector gets no gradient.
    """
    load_into_model(state.require_injection(), contents)
    factor = partial(rate_factor, schedule, steps=steps, warmup_steps=warmup_steps)
    settings = (
        EmbeddingSettings(learning_rate, optimizer, factor, clip_norm, preserve_norm, ema) if embeddings else None
    )
    eye = Guard(guard, partial(warn, context, state))
    as_exported = partial(_as_exported, context, state.stage, state.initial)
    finished = Finished(export_context(context, state), contents, as_exported)
    common = Common(steps, clip_norm, ema, context.recipe.seed)
    trainables = build_trainables(
        context,
        state,
        settings,
        lora or (),
        finetune or (),
        common,
        finished,
        eye,
        shard_optimizer_from=shard_optimizer_from,
    )
    asked = build_objective(context, state, objective, noise, timesteps)
    if state.checkpoint is not None and state.stage < state.checkpoint.stage:
        for trainable in trainables:  # the checkpoint of a later stage has the values of what was put together here
            trainable.finish()
        return read_from_model(context.model, state.require_injection(), contents)
    images = build_dataset(
        context, state, resolution=resolution, batch_size=batch_size, flip=flip, caption_dropout=caption_dropout
    )
    training = build_training(
        context, state, trainables, asked, images, eye, steps=steps, accumulation=gradient_accumulation,
        prior_weight=prior_weight, locality=locality,
    )  # fmt: skip
    with compiled(context.model.denoiser, compile), less_memory(context.model, gradient_checkpointing):
        run_steps(context, state, training, contents, finished, log_every=log_every, watch=watch, save=save)
    return state.latest or contents


def _as_exported(context: RunContext, index: int, initial: Contents, contents: Contents) -> Contents:
    """The embeddings as the stages after the one with this `index` change them before they are exported."""
    for stage in context.recipe.stages[index + 1 :]:
        if stage.kind == "rescale":
            contents, _ = rescaled(context, initial, contents, **stage.options)
    return contents
