"""A train stage put together from the run it is part of: what is trained, on what, and what it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..data.dataset import Dataset, open_dataset
from ..distributed import ALONE
from ..errors import StageError
from ..export.finished import Finished
from ..models.denoisers import DENOISERS, Texts
from ..models.load import pipe_name
from ..train.embeddings import EmbeddingSettings, EmbeddingTrainer
from ..train.guard import Guard
from ..train.locality import keep_originals, locality_of
from ..train.loss import loss_scale
from ..train.objective import Objective, objective_for
from ..train.setup import Common, Tables, Training, native_resolution, weight_trainers, weights_of
from ..train.trainable import Trainable
from .consistency import require_unchanged_data
from .context import RunContext, RunState
from .steps import initial_norms

Options = Mapping[str, Any]


def build_trainables(
    context: RunContext, state: RunState, embeddings: EmbeddingSettings | None, lora: Tables, finetune: Tables,
    common: Common, finished: Finished, guard: Guard, *, shard_optimizer_from: int,
) -> tuple[Trainable, ...]:  # fmt: skip
    """Everything that a stage trains, the embeddings first; without settings for them they are held still.

    From `shard_optimizer_from` embeddings on, several processes share out what moves them.
    What it tunes of the model is noted in `run`. Raises StageError when there is nothing to train.
    """
    trainables = weight_trainers(context.model, lora, finetune, common, context.processes)
    state.trained.finetuned |= {pipe_name(context.model, part) for table in finetune for part in table["parts"]}
    if embeddings is not None and any(embedding.train for embedding in context.recipe.embeddings):
        recorded = context.processes.from_main(lambda: finished.recorded)
        injection = state.require_injection()
        norms = initial_norms(injection, state.initial)
        sharing = context.processes if len(context.recipe.embeddings) >= shard_optimizer_from else ALONE
        trainables.insert(
            0,
            EmbeddingTrainer(
                injection, context.recipe.embeddings, context.statistics, embeddings, norms, recorded, guard, sharing
            ),
        )
    if not trainables:
        raise StageError("nothing to train: no embedding (embeddings = false, or train = false), no lora, no finetune")
    state.trained.weights |= weights_of(trainables)
    state.notes += keep_originals(context.recipe, state.trained.originals, trainables)
    return tuple(trainables)


def build_objective(
    context: RunContext, state: RunState, objective: Options, noise: Options, timesteps: Options
) -> Objective:
    """What the model is asked for. Where that is not what it was made for, images of this run are drawn so."""
    asked = objective_for(context.model.pipe.scheduler, objective, noise, timesteps)
    told = asked.drawing(context.model.pipe.scheduler)
    if told is not context.model.pipe.scheduler:
        context.model.pipe.scheduler = told
        state.warnings.append(
            f"the model's scheduler says otherwise than objective (prediction {asked.kind}); images of "
            "this run are drawn as trained, other programs must be told"
        )
    return asked


def build_dataset(
    context: RunContext, state: RunState, *, resolution: int | None, batch_size: int, flip: bool, caption_dropout: float
) -> Dataset:  # fmt: skip
    """The recipe's images, encoded; without `resolution` in the size that the model was made for."""
    context.progress("reading and encoding the images")
    images = open_dataset(
        context.recipe, context.model.pipe.vae, resolution=resolution or native_resolution(context.model),
        batch_size=batch_size,
        seed=_seed(context, state.stage), flip=flip, caption_dropout=caption_dropout, run_folder=context.folder,
        warn=state.warnings.append, tell=context.progress, bar=context.bar, processes=context.processes,
    )  # fmt: skip
    if context.file_hashes:
        with context.processes.together():
            require_unchanged_data(context.recipe, images.examples, context.file_hashes)
    return images


def build_training(
    context: RunContext, state: RunState, trainables: tuple[Trainable, ...], asked: Objective, images: Dataset,
    guard: Guard, *, steps: int, accumulation: int, prior_weight: float, locality: Options | None,
) -> Training:  # fmt: skip
    """All that the steps need."""
    denoiser = DENOISERS[context.model.family.denoiser_kind]
    text_moves = any(isinstance(trainable, EmbeddingTrainer) or trainable.trains_text for trainable in trainables)
    training = Training(
        model=context.model,
        denoiser=denoiser,
        injection=state.require_injection(),
        objective=asked,
        dataset=images,
        trainables=trainables,
        steps=steps,
        accumulation=accumulation,
        seed=_seed(context, state.stage),
        prior_weight=prior_weight,
        scale=loss_scale(context.model.dtype),
        guard=guard,
        processes=context.processes,
        texts=None if text_moves else Texts(denoiser, context.model.pipe),
    )
    return (
        training
        if locality is None
        else replace(training, locality=locality_of(context.recipe, state.trained.originals, training, locality))
    )


def _seed(context: RunContext, index: int) -> int:
    """The seed of the stage: two train stages of a recipe draw differently."""
    return context.recipe.seed + 1000 * index
