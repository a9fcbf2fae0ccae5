"""Counts the images of an epoch before anything is loaded. Needs Pillow, not torch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

from ..data.buckets import Shape
from ..data.captions import read_concept
from ..data.epochs import concept_quotas, count_batches, counts_per_epoch, embedding_counts
from ..data.examples import crop_of
from ..data.holdout import trained_images
from ..data.images import inspect_image
from ..models.family import family_of, local_path, native_resolution
from ..models.received import read_config
from ..recipe.model import Concept, ModelSpec, Recipe, Stage
from ..recipe.options import TrainOptions


@dataclass(frozen=True)
class Image:
    """One image: its upright size, captions, whether it has a mask, and the repeats that its folder gives."""

    path: Path
    concept: int
    size: Shape
    captions: tuple[str, ...]
    masked: bool
    repeats: int = 1


@dataclass(frozen=True)
class ConceptCount:
    """One concept: its images, those with a mask, and how often an epoch samples one of them."""

    folder: str
    images: int
    masked: int
    shown: float
    loss_weight: float
    prior: bool


@dataclass(frozen=True)
class Survey:
    """An epoch: the samples of each concept, the number of images per crop size, and the samples of each embedding.

    `embeddings`: images with the embedding in a caption, and how often an epoch samples it. `shown`: all samples.
    """

    concepts: tuple[ConceptCount, ...]
    shapes: dict[str, int]
    embeddings: dict[str, tuple[int, float]]
    shown: float
    batches: int


def survey_images(recipe: Recipe) -> list[Image]:
    """Every image that is trained. RecipeError where captions are missing, StageError for a bad image."""
    images = []
    every = trained_images(recipe, [read_concept(concept) for concept in recipe.concepts])
    for number, (concept, read) in enumerate(zip(recipe.concepts, every, strict=True)):
        for path, texts in read.images:
            masked = path in read.masks or concept.masks == "alpha"
            images.append(Image(path, number, inspect_image(path)[0], tuple(texts), masked, read.repeats.get(path, 1)))
    return images


def survey(recipe: Recipe, images: list[Image], resolution: int, batch_size: int) -> Survey:
    """The epoch of a train stage with this resolution and batch size, for the images of `survey_images`."""
    places: list[list[int]] = [[] for _ in recipe.concepts]
    for place, one in enumerate(images):
        places[one.concept].append(place)
    captions = [[list(images[place].captions) for place in here] for here in places]
    quotas = concept_quotas(recipe, captions, [[images[place].repeats for place in here] for here in places])
    shown = counts_per_epoch(quotas)
    cuts = [crop_of(one.size, recipe.concepts[one.concept], recipe.data, resolution) for one in images]
    return Survey(
        tuple(_concept(concept, here, images, shown) for concept, here in zip(recipe.concepts, places, strict=True)),
        {f"{width}x{height}": count for (width, height), count in sorted(Counter(cuts).items())},
        embedding_counts(recipe, [one.captions for one in images], quotas),
        sum(shown.values()),
        count_batches(quotas, cuts, batch_size),
    )


def _concept(concept: Concept, here: list[int], images: list[Image], shown: dict[int, float]) -> ConceptCount:
    return ConceptCount(
        str(concept.images), len(here), sum(images[place].masked for place in here),
        sum(shown.get(place, 0.0) for place in here), concept.loss_weight, concept.prior,
    )  # fmt: skip


def with_steps(recipe: Recipe) -> Recipe:
    """The recipe with a number of steps in every train stage, where it gives epochs: batches of these epochs divided by
    `gradient_accumulation`, rounded up.

    Raises RecipeError or StageError if the images cannot be read.
    """
    if all(stage.epochs is None for stage in recipe.stages):
        return recipe
    images = survey_images(recipe)
    native = stated_resolution(recipe.model) or 512
    stages = []
    for stage in recipe.stages:
        options = stage.options
        if stage.epochs is not None and isinstance(options, TrainOptions):
            batches = survey(recipe, images, options.resolution or native, options.batch_size).batches
            steps = max(1, ceil(round(stage.epochs * batches / options.gradient_accumulation, 6)))
            stage = Stage(stage.kind, replace(options, steps=steps))
        stages.append(stage)
    return replace(recipe, stages=tuple(stages))


def stated_resolution(spec: ModelSpec) -> int | None:
    """As `Model.resolution`, from the model's configuration or its family; None if unknown."""
    folder, family = local_path(spec), family_of(spec)
    if folder is None or family is None:
        return family.resolution if family is not None else None
    try:
        parts = (family.denoiser_module, "vae")
        denoiser, vae = (read_config(folder / part / "config.json", folder) for part in parts)
        return native_resolution(family, denoiser, vae)
    except (OSError, ValueError, KeyError, TypeError):
        return family.resolution
