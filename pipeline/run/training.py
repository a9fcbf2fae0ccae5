"""A train stage put together from the run it is part of: what is trained, on what, and what it is asked for."""

from __future__ import annotations

from dataclasses import replace

from ..data.dataset import Dataset, open_dataset
from ..distributed import ALONE
from ..errors import StageError
from ..export.finished import Finished
from ..models.denoisers import DENOISERS, Texts
from ..models.load import pipe_name
from ..recipe.options import TrainOptions
from ..train.embeddings import EmbeddingTrainer, embedding_settings
from ..train.guard import Guard
from ..train.locality import keep_originals, locality_of
from ..train.loss import loss_scale
from ..train.objective import Objective, objective_for
from ..train.setup import Trainables, Training, weight_trainers
from .consistency import require_unchanged_data
from .context import Run
from .steps import start_norms


def build_trainables(run: Run, options: TrainOptions, finished: Finished) -> Trainables:
    """Everything that a stage trains, the embeddings first; with `embeddings = false` they are held still.

    From `shard_optimizer_from` embeddings on, several processes share out what moves them.
    What it tunes of the model is noted in `run`. Raises StageError when there is nothing to train.
    """
    weights = weight_trainers(run.model, options, run.recipe.seed, run.processes)
    run.finetuned |= {pipe_name(run.model, part) for table in options.finetune for part in table.parts}
    embeddings = None
    if options.embeddings and run.recipe.trained:
        recorded = run.processes.from_main(lambda: finished.recorded)
        injection, norms = run.need_injection(), start_norms(run)
        sharing = run.processes if len(run.recipe.embeddings) >= options.shard_optimizer_from else ALONE
        settings = embedding_settings(options)
        embeddings = EmbeddingTrainer(
            injection, run.recipe.embeddings, run.statistics, settings, norms, recorded, sharing
        )
    if embeddings is None and not weights:
        raise StageError("nothing to train: no embedding (embeddings = false, or train = false), no lora, no finetune")
    trainables = Trainables(embeddings, tuple(weights))
    run.moved |= trainables.parameters
    run.notes += keep_originals(run.recipe, run.originals, weights)
    return trainables


def build_objective(run: Run, options: TrainOptions) -> Objective:
    """What the model is asked for. Where that is not what it was made for, images of this run are drawn so."""
    asked = objective_for(run.model.pipe.scheduler, options.objective, options.noise, options.timesteps)
    told = asked.drawing(run.model.pipe.scheduler)
    if told is not run.model.pipe.scheduler:
        run.model.pipe.scheduler = told
        run.warnings.append(
            f"the model's scheduler says otherwise than objective (prediction {asked.kind}); images of "
            "this run are drawn as trained, other programs must be told"
        )
    return asked


def build_dataset(run: Run, options: TrainOptions) -> Dataset:
    """The recipe's images, encoded; without `resolution` in the size that the model was made for."""
    run.progress("reading and encoding the images")
    images = open_dataset(
        run.recipe, run.model.pipe.vae, resolution=options.resolution or run.model.resolution,
        multiple=run.model.size_multiple,
        batch_size=options.batch_size, seed=_seed(run), flip=options.flip, caption_dropout=options.caption_dropout,
        run_folder=run.folder,
        warn=run.warnings.append, tell=run.progress, bar=run.bar, processes=run.processes,
    )  # fmt: skip
    if run.files:
        with run.processes.together():
            require_unchanged_data(run.recipe, images.examples, run.files)
    return images


def build_training(
    run: Run, trainables: Trainables, asked: Objective, images: Dataset, guard: Guard, options: TrainOptions
) -> Training:  # fmt: skip
    """All that the steps need."""
    denoiser = DENOISERS[run.model.family.denoiser_kind]
    text_moves = trainables.embeddings is not None or any(one.trains_text for one in trainables.weights)
    training = Training(
        model=run.model,
        denoiser=denoiser,
        injection=run.need_injection(),
        objective=asked,
        dataset=images,
        trainables=trainables,
        steps=options.steps,
        accumulation=options.gradient_accumulation,
        seed=_seed(run),
        prior_weight=options.prior_weight,
        scale=loss_scale(run.model.dtype),
        guard=guard,
        processes=run.processes,
        texts=None if text_moves else Texts(denoiser, run.model.pipe),
    )
    if options.locality is None:
        return training
    return replace(training, locality=locality_of(run.recipe, run.originals, training, options.locality))


def _seed(run: Run) -> int:
    """The seed of the stage: two train stages of a recipe draw differently."""
    return run.recipe.seed + 1000 * run.stage
