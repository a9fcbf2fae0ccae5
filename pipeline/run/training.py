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
from .context import Run
from .steps import start_norms

Options = Mapping[str, Any]


def build_trainables(
    run: Run, embeddings: EmbeddingSettings | None, lora: Tables, finetune: Tables, common: Common, finished: Finished,
    guard: Guard, *, shard_optimizer_from: int,
) -> tuple[Trainable, ...]:  # fmt: skip
    """Everything that a stage trains, the embeddings first; without settings for them they are held still.

    From `shard_optimizer_from` embeddings on, several processes share out what moves them.
    What it tunes of the model is noted in `run`. Raises StageError when there is nothing to train.
    """
    trainables = weight_trainers(run.model, lora, finetune, common, run.processes)
    run.finetuned |= {pipe_name(run.model, part) for table in finetune for part in table["parts"]}
    if embeddings is not None and any(embedding.train for embedding in run.recipe.embeddings):
        recorded = run.processes.from_main(lambda: finished.recorded)
        injection, norms = run.need_injection(), start_norms(run)
        sharing = run.processes if len(run.recipe.embeddings) >= shard_optimizer_from else ALONE
        trainables.insert(
            0,
            EmbeddingTrainer(
                injection, run.recipe.embeddings, run.statistics, embeddings, norms, recorded, guard, sharing
            ),
        )
    if not trainables:
        raise StageError("nothing to train: no embedding (embeddings = false, or train = false), no lora, no finetune")
    run.moved |= weights_of(trainables)
    run.notes += keep_originals(run.recipe, run.originals, trainables)
    return tuple(trainables)


def build_objective(run: Run, objective: Options, noise: Options, timesteps: Options) -> Objective:
    """What the model is asked for. Where that is not what it was made for, images of this run are drawn so."""
    asked = objective_for(run.model.pipe.scheduler, objective, noise, timesteps)
    told = asked.drawing(run.model.pipe.scheduler)
    if told is not run.model.pipe.scheduler:
        run.model.pipe.scheduler = told
        run.warnings.append(
            f"the model's scheduler says otherwise than objective (prediction {asked.kind}); images of "
            "this run are drawn as trained, other programs must be told"
        )
    return asked


def build_dataset(
    run: Run, *, resolution: int | None, batch_size: int, flip: bool, caption_dropout: float
) -> Dataset:  # fmt: skip
    """The recipe's images, encoded; without `resolution` in the size that the model was made for."""
    run.progress("reading and encoding the images")
    images = open_dataset(
        run.recipe, run.model.pipe.vae, resolution=resolution or native_resolution(run.model), batch_size=batch_size,
        seed=_seed(run), flip=flip, caption_dropout=caption_dropout, run_folder=run.folder,
        warn=run.warnings.append, tell=run.progress, bar=run.bar, processes=run.processes,
    )  # fmt: skip
    if run.files:
        with run.processes.together():
            require_unchanged_data(run.recipe, images.examples, run.files)
    return images


def build_training(
    run: Run, trainables: tuple[Trainable, ...], asked: Objective, images: Dataset, guard: Guard, *, steps: int,
    accumulation: int, prior_weight: float, locality: Options | None,
) -> Training:  # fmt: skip
    """All that the steps need."""
    denoiser = DENOISERS[run.model.family.denoiser_kind]
    text_moves = any(isinstance(trainable, EmbeddingTrainer) or trainable.trains_text for trainable in trainables)
    training = Training(
        model=run.model,
        denoiser=denoiser,
        injection=run.need_injection(),
        objective=asked,
        dataset=images,
        trainables=trainables,
        steps=steps,
        accumulation=accumulation,
        seed=_seed(run),
        prior_weight=prior_weight,
        scale=loss_scale(run.model.dtype),
        guard=guard,
        processes=run.processes,
        texts=None if text_moves else Texts(denoiser, run.model.pipe),
    )
    return (
        training
        if locality is None
        else replace(training, locality=locality_of(run.recipe, run.originals, training, locality))
    )


def _seed(run: Run) -> int:
    """The seed of the stage: two train stages of a recipe draw differently."""
    return run.recipe.seed + 1000 * run.stage
