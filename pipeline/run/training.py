"""Builds what a train stage needs: what is trained, the objective, the data."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..data.dataset import Dataset, open_dataset
from ..distributed import SINGLE_PROCESS
from ..errors import StageError
from ..export.finished import Finished
from ..export.lora_base import read_bases, under
from ..models.denoisers import denoiser_for
from ..models.load import pipe_name
from ..models.text import CaptionCache
from ..recipe.options import TrainOptions
from ..train.embeddings import EmbeddingTrainer, embedding_settings
from ..train.guard import Guard
from ..train.loss import loss_scale
from ..train.objective import Objective, objective_for
from ..train.setup import Trainables, Training, frozen_encoders, weight_trainers
from .consistency import require_unchanged_data
from .context import RunContext, RunState
from .steps import initial_norms

if TYPE_CHECKING:
    from ..train.validation import Validation


def build_trainables(context: RunContext, state: RunState, options: TrainOptions, finished: Finished) -> Trainables:
    """Everything that a stage trains, the embeddings first; with `embeddings = false` they are frozen.

    From `shard_optimizer_from` embeddings on, several processes shard their optimizer. What is trained is added to
    `state.trained`. Raises StageError when there is nothing to train.
    """
    bases = read_bases(context.model, options.trained_loras)
    weights = weight_trainers(context.model, options, context.recipe.seed, context.processes, bases)
    state.notes += [under(table) for table in options.fixed_loras]
    state.trained.finetuned |= {pipe_name(context.model, part) for table in options.finetune for part in table.parts}
    embeddings = None
    if options.embeddings and context.recipe.trained:
        recorded = context.processes.from_main(lambda: finished.recorded)
        injection, settings = state.require_injection(), embedding_settings(options)
        norms = initial_norms(injection, state.initial)
        sharded = len(context.recipe.embeddings) >= options.shard_optimizer_from
        sharing = context.processes if sharded else SINGLE_PROCESS
        embeddings = EmbeddingTrainer(
            injection, context.recipe.embeddings, context.statistics, settings, norms, recorded, sharing
        )
    if embeddings is None and not weights:
        raise StageError("nothing to train: no embedding (embeddings = false, or train = false), no lora, no finetune")
    trainables = Trainables(embeddings, tuple(weights))
    state.trained.weights |= trainables.parameters
    if any(options.locality for _, options in context.recipe.stages_with(TrainOptions)):
        from ..train.locality import keep_originals

        state.notes += keep_originals(state.trained.originals, weights)
    return trainables


def build_objective(context: RunContext, state: RunState, options: TrainOptions) -> Objective:
    """What the model is trained to predict. Where its own scheduler differs, this run draws its images with another."""
    objective = objective_for(
        context.model.family.objective,
        context.model.pipe.scheduler,
        options.objective,
        options.noise,
        options.timesteps,
    )
    scheduler = objective.sampling_scheduler(context.model.pipe.scheduler)
    if scheduler is not context.model.pipe.scheduler:
        context.model.pipe.scheduler = scheduler
        state.warnings.append(
            f"the model is trained with prediction {objective.kind}, which its scheduler does not have; sample images "
            "of this run use it, in other programs it has to be set"
        )
    return objective


def build_dataset(context: RunContext, state: RunState, options: TrainOptions) -> Dataset:
    """The recipe's images, encoded; without `resolution` at the model's native resolution."""
    context.progress("reading and encoding the images")
    images = open_dataset(
        context.recipe, context.model.pipe.vae, resolution=options.resolution or context.model.resolution,
        multiple=context.model.size_multiple, batch_size=options.batch_size, seed=_seed(context, state.stage),
        flip=options.flip, caption_dropout=options.caption_dropout, run_folder=context.folder,
        warn=state.warnings.append, tell=context.progress, bar=context.bar, processes=context.processes,
    )  # fmt: skip
    if context.file_hashes:
        with context.processes.together():
            require_unchanged_data(context.recipe, [*images.examples, *images.held_out], context.file_hashes)
    return images


def build_training(
    context: RunContext, state: RunState, trainables: Trainables, objective: Objective, dataset: Dataset,
    guard: Guard, options: TrainOptions,
) -> Training:  # fmt: skip
    """All that the steps need."""
    denoiser = denoiser_for(context.model.family.denoiser_kind, options.objective.guidance)
    text_moves = trainables.embeddings is not None or any(one.trains_text for one in trainables.weights)
    training = Training(
        model=context.model,
        denoiser=denoiser,
        injection=state.require_injection(),
        objective=objective,
        dataset=dataset,
        trainables=trainables,
        steps=options.steps,
        accumulation=options.gradient_accumulation,
        seed=_seed(context, state.stage),
        prior_weight=options.prior_weight,
        scale=loss_scale(context.model.dtype),
        guard=guard,
        processes=context.processes,
        texts=None if text_moves else CaptionCache(denoiser, context.model.pipe),
        frozen=frozen_encoders(context.model, trainables) if text_moves else (),
    )
    validation = _validation_of(context, state, options, training)
    training = replace(training, validation=validation)
    of_model = any(one.prior and one.prior_target == "model" for one in context.recipe.concepts)
    if of_model or options.objective.masked_prior_weight > 0:
        from ..train.prior import prior_target_of

        training = replace(training, prior_target=prior_target_of(training, options))
    if options.locality is None:
        return training
    from ..train.locality import locality_of

    return replace(training, locality=locality_of(context.recipe, state.trained.originals, training, options.locality))


def _validation_of(
    context: RunContext, state: RunState, options: TrainOptions, training: Training
) -> Validation | None:
    """The validation of a stage, None for a recipe without one. The best state of the last train stage is kept."""
    spec, recipe = context.recipe.validation, context.recipe
    if spec is None:
        return None
    if not training.dataset.held_out:
        raise StageError("validation: there are no held-out images; add images to the folder of validation.concept")
    from ..train.validation import Validation

    last = not recipe.stages_with(TrainOptions, state.stage + 1)
    patience = options.stop_when.patience if options.stop_when else None
    return Validation(spec, recipe.seed, patience, keep=last and recipe.exports_best)


def _seed(context: RunContext, index: int) -> int:
    """The seed of the stage: two train stages of a recipe draw differently."""
    return context.recipe.seed + 1000 * index
