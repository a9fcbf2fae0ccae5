"""The images of a recipe as examples: with captions, mask, content hash and the shape they are cut to."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import StageError
from ..recipe.model import Concept, DataSpec, Recipe
from .buckets import LEAST_SEEN, Shape, cut_shape, default_bucket_step, visible_share
from .captions import read_concept
from .epochs import Turns, turns_of
from .images import inspect_image


@dataclass(frozen=True)
class Example:
    """One image of a concept and the captions it may be shown with; one of them is drawn each time.

    `content` is the hash of image and mask, `size` its upright width and height, `cut` what it is cut to.
    """

    image: Path
    captions: tuple[str, ...]
    concept: Concept
    mask: Path | None
    content: str
    size: Shape
    cut: Shape

    @property
    def masked(self) -> bool:
        """Whether the image has a mask, in a file or as its transparency."""
        return self.mask is not None or self.concept.masks == "alpha"


@dataclass
class Examples:
    """The examples of all concepts in their order, how an epoch takes turns with them, and images that are bad."""

    rows: list[Example] = field(default_factory=list)
    turns: list[Turns] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def read_examples(recipe: Recipe, resolution: int) -> Examples:
    """Every image of every concept, looked at but not decoded. `resolution` is the train stage's.

    RecipeError where captions are missing; images that cannot be used are among the problems.
    """
    result, captions = Examples(), []
    hashes: dict[Path, str] = {}
    for concept in recipe.concepts:
        read = read_concept(concept)
        captions.append([texts for _, texts in read.images])
        for image, texts in read.images:
            mask = read.masks.get(image)
            try:
                size, _ = inspect_image(image)
                cut = cut_of(size, concept, recipe.data, resolution)
                refuse_narrow(image, size, cut)
                content = content_of(image, mask, concept, hashes)
            except StageError as error:
                result.problems.append(str(error))
                continue
            result.rows.append(Example(image, tuple(texts), concept, mask, content, size, cut))
    if not result.problems:
        result.turns = turns_of(recipe, captions)
    return result


def cut_of(size: Shape, concept: Concept, data: DataSpec, resolution: int) -> Shape:
    """What an image of this size is cut to. StageError when the buckets do not fit the resolution."""
    edge = concept.resolution or resolution
    try:
        return cut_shape(size, edge, (data.bucket_step or default_bucket_step(edge)) if data.buckets else None)
    except ValueError as error:
        raise StageError(f"{error}; choose a smaller data.bucket_step") from error


def refuse_narrow(image: Path, size: Shape, cut: Shape) -> None:
    """StageError for an image of which next to nothing would be seen."""
    share = visible_share(size, cut)
    if share < LEAST_SEEN:
        sizes = f"{size[0]}x{size[1]} pixels cut to {cut[0]}x{cut[1]}"
        raise StageError(f"{image}: {sizes} leave {share:.1%} of it; crop the image yourself, or remove it")


def content_of(image: Path, mask: Path | None, concept: Concept, hashes: dict[Path, str] | None = None) -> str:
    """Hash of an image and its mask; `hashes` are those of files that are known, and takes new ones up."""
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
