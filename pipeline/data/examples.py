"""The images of a recipe as examples: with captions, mask, content hash and crop size."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..errors import StageError
from ..recipe.model import Concept, DataSpec, Recipe
from .buckets import LEAST_VISIBLE, Shape, crop_shape, default_bucket_step, visible_share
from .captions import read_concept
from .epochs import ConceptQuota, concept_quotas
from .holdout import held_out, without
from .images import inspect_image


@dataclass(frozen=True)
class Example:
    """One image of a concept and its captions, of which one is sampled each time.

    `content` is the hash of image and mask, `size` its upright width and height, `crop` the size of its crop.
    """

    image: Path
    captions: tuple[str, ...]
    concept: Concept
    mask: Path | None
    content: str
    size: Shape
    crop: Shape

    @property
    def masked(self) -> bool:
        """Whether the image has a mask: a file, or its alpha channel."""
        return self.mask is not None or self.concept.masks == "alpha"


@dataclass
class Examples:
    """The examples of all concepts in order, their quotas in an epoch, and problems with images.

    `held_out` are those for validation, which are not trained.
    """

    rows: list[Example] = field(default_factory=list)
    held_out: list[Example] = field(default_factory=list)
    quotas: list[ConceptQuota] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def read_examples(recipe: Recipe, resolution: int) -> Examples:
    """Every image of every concept, inspected but not decoded. `resolution` is the train stage's.

    RecipeError if captions are missing; images that cannot be used are in `problems`.
    """
    result, hashes = Examples(), dict[Path, str]()
    read = [read_concept(concept) for concept in recipe.all_concepts]
    captions = [[texts for _, texts in one.images] for one in read[: len(recipe.concepts)]]
    chosen = held_out(recipe, captions)
    for number, (concept, one) in enumerate(zip(recipe.all_concepts, read, strict=True)):
        for index, (image, texts) in enumerate(one.images):
            try:
                example = _example(image, texts, concept, one.masks.get(image), recipe.data, resolution, hashes)
            except StageError as error:
                result.problems.append(str(error))
                continue
            if number >= len(recipe.concepts) or index in chosen[number]:
                result.held_out.append(replace(example, concept=not_augmented(concept)))
            else:
                result.rows.append(example)
    if not result.problems:
        shown = [one.shown for one in read[: len(recipe.concepts)]]
        result.quotas = concept_quotas(recipe, without(captions, chosen), without(shown, chosen))
    return result


def _example(
    image: Path, texts: Sequence[str], concept: Concept, mask: Path | None, data: DataSpec, resolution: int,
    hashes: dict[Path, str],
) -> Example:  # fmt: skip
    size, _ = inspect_image(image)
    crop = crop_of(size, concept, data, resolution)
    require_visible(image, size, crop)
    return Example(image, tuple(texts), concept, mask, content_of(image, mask, concept, hashes), size, crop)


def not_augmented(concept: Concept) -> Concept:
    """The concept without augmentation of its images and of their tags."""
    return replace(
        concept, flip=False, crop="centre", rotate=0.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0,
        shuffle_tags=False, tag_dropout=0.0, capitals=0.0,
    )  # fmt: skip


def crop_of(size: Shape, concept: Concept, data: DataSpec, resolution: int) -> Shape:
    """The crop size of an image of this size. StageError when the buckets do not fit the resolution."""
    edge = concept.resolution or resolution
    try:
        return crop_shape(size, edge, (data.bucket_step or default_bucket_step(edge)) if data.buckets else None)
    except ValueError as error:
        raise StageError(f"{error}; choose a smaller data.bucket_step") from error


def require_visible(image: Path, size: Shape, crop: Shape) -> None:
    """StageError for an image that would be cropped to a small part."""
    share = visible_share(size, crop)
    if share < LEAST_VISIBLE:
        sizes = f"{size[0]}x{size[1]} pixels cropped to {crop[0]}x{crop[1]}"
        raise StageError(f"{image}: {sizes} leave {share:.1%} of it; crop the image yourself, or remove it")


def content_of(image: Path, mask: Path | None, concept: Concept, hashes: dict[Path, str] | None = None) -> str:
    """Hash of an image and its mask; `hashes` has those of known files, and new ones are added."""
    known = {} if hashes is None else hashes
    parts = [_hash(image, known)]
    if mask is not None:
        parts.append(_hash(mask, known))
    elif concept.masks == "alpha":
        parts.append("alpha")
    return "+".join(parts)


def _hash(path: Path, hashes: dict[Path, str]) -> str:
    if path not in hashes:
        try:
            with path.open("rb") as file:
                hashes[path] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise StageError(f"{path}: cannot be read: {error.strerror or error}") from error
    return hashes[path]
