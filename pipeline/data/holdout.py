"""Which images of the concepts are held out for validation, drawn by the recipe's seed. Needs no torch."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TypeVar

from ..embeddings.placeholders import Replacer
from ..errors import StageError
from ..recipe.model import Recipe
from .captions import Captioned

T = TypeVar("T")


def held_out(recipe: Recipe, captions: Sequence[Sequence[Sequence[str]]]) -> list[set[int]]:
    """For each concept the indices of the images that are held out; `captions` are those of each image.

    `validation.share` of all images in an order that depends on the seed and their indices alone, at least one. An
    image stays where it is the last of its concept, or the last with an embedding. Raises StageError where none is
    left to be held out.
    """
    chosen: list[set[int]] = [set() for _ in captions]
    share = recipe.validation.share if recipe.validation else None
    if share is None:
        return chosen
    replacer = Replacer([embedding.placeholder for embedding in recipe.embeddings])
    found = {
        (number, index): {name for text in texts for name in replacer.embeddings_in(text)}
        for number, images in enumerate(captions)
        if not recipe.concepts[number].prior
        for index, texts in enumerate(images)
    }
    left: Counter[int | str] = Counter(number for number, _ in found)
    left.update(name for names in found.values() for name in names)
    wanted = max(1, round(share * len(found)))
    for number, index in sorted(found, key=lambda place: _rank(recipe.seed, place)):
        of: list[int | str] = [number, *found[number, index]]
        if wanted and all(left[one] > 1 for one in of):
            chosen[number].add(index)
            left.subtract(of)
            wanted -= 1
    if not any(chosen):
        raise StageError(
            "validation.share: no image can be held out, as each is the only one of its concept or of an embedding; "
            "use validation.concept"
        )
    return chosen


def without(captions: Sequence[Sequence[T]], chosen: Sequence[Collection[int]]) -> list[list[T]]:
    """What is left of the items of each concept when the indices that are held out are removed."""
    pairs = zip(captions, chosen, strict=True)
    return [[one for index, one in enumerate(images) if index not in indices] for images, indices in pairs]


def trained_images(recipe: Recipe, read: Sequence[Captioned]) -> list[Captioned]:
    """The recipe's concepts as read, without the images that are held out."""
    chosen = held_out(recipe, [[texts for _, texts in one.images] for one in read])
    left = without([one.images for one in read], chosen)
    return [replace(one, images=images) for one, images in zip(read, left, strict=True)]


def _rank(seed: int, place: tuple[int, int]) -> bytes:
    return hashlib.sha256(f"{seed}/validation/{place[0]}/{place[1]}".encode()).digest()
