"""The images of each batch: every image once per epoch, unless the recipe balances them. Needs no torch."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

from ..embeddings.placeholders import Replacer
from ..recipe.model import Recipe
from ..rng import generator

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ConceptQuota:
    """The examples of one concept, with repeats, and how many of them are in an epoch.

    If that is another number than there are, the examples rotate: over the epochs all are sampled equally often.
    """

    examples: tuple[int, ...]
    per_epoch: int


def concept_quotas(
    recipe: Recipe, captions: Sequence[Sequence[Sequence[str]]], repeats: Sequence[Sequence[int]] | None = None
) -> list[ConceptQuota]:
    """The quotas of every concept that has images; `captions` are those of each image of each concept, `repeats` how
    often each image counts by its folder, once by default.

    Examples are numbered through all concepts in their order. The recipe's `data.balance` is applied.
    """
    factors = [list(row) for row in repeats] if repeats is not None else [[1] * len(images) for images in captions]
    if recipe.data.balance == "embeddings":
        factors = _embedding_factors(recipe, captions, factors)
    sizes = [
        concept.images_per_epoch or sum(row) * concept.repeats
        for concept, row in zip(recipe.concepts, factors, strict=True)
    ]
    if recipe.data.balance == "concepts":
        most = max(sizes, default=0)
        sizes = [concept.images_per_epoch or most for concept in recipe.concepts]
    quotas, first = [], 0
    for concept, row, size in zip(recipe.concepts, factors, sizes, strict=True):
        numbers = [first + index for index, factor in enumerate(row) for _ in range(factor)]
        first += len(row)
        if numbers:
            quotas.append(ConceptQuota(tuple(numbers) * (1 if concept.images_per_epoch else concept.repeats), size))
    return quotas


def _embedding_factors(
    recipe: Recipe, captions: Sequence[Sequence[Sequence[str]]], repeats: list[list[int]]
) -> list[list[int]]:
    """How often each image is repeated so that all embeddings are about as frequent as the most frequent one.

    An image counts for an embedding by the share of its captions that contain it. With several embeddings in an image
    the rarest decides.
    """
    replacer = Replacer([embedding.placeholder for embedding in recipe.embeddings])
    per_image = [[_shares(replacer, texts) for texts in images] for images in captions]
    total: Counter[str] = Counter()
    for concept, images, times in zip(recipe.concepts, per_image, repeats, strict=True):
        for shares, count in zip(images, times, strict=True):
            total.update({embedding: share * count * concept.repeats for embedding, share in shares.items()})
    most = max(total.values(), default=0)
    return [
        [
            count * max([round(most / total[embedding]) for embedding in shares], default=1)
            for shares, count in zip(row, times, strict=True)
        ]
        for row, times in zip(per_image, repeats, strict=True)
    ]


def _shares(replacer: Replacer, texts: Sequence[str]) -> dict[str, float]:
    found: Counter[str] = Counter(embedding for text in texts for embedding in set(replacer.embeddings_in(text)))
    return {embedding: count / len(texts) for embedding, count in found.items()}


def counts_per_epoch(quotas: Iterable[ConceptQuota]) -> dict[int, float]:
    """How often each example is in an epoch, on average over the epochs."""
    counts: dict[int, float] = {}
    for quota in quotas:
        for example, times in Counter(quota.examples).items():
            counts[example] = counts.get(example, 0.0) + times * quota.per_epoch / len(quota.examples)
    return counts


def count_batches(quotas: Iterable[ConceptQuota], shapes: Sequence[Hashable], size: int) -> int:
    """Number of batches in an epoch: as few as possible for each shape. Approximate if examples rotate."""
    by_shape: dict[Hashable, float] = {}
    for example, times in counts_per_epoch(quotas).items():
        by_shape[shapes[example]] = by_shape.get(shapes[example], 0.0) + times
    return sum(-(-round(times) // size) for times in by_shape.values())


def embedding_counts(
    recipe: Recipe, captions: Sequence[Sequence[str]], quotas: Iterable[ConceptQuota]
) -> dict[str, tuple[int, float]]:
    """For each embedding the number of images that contain it, and how often it is in an epoch on average.

    `captions` are those of each example; an image with the embedding in half of its captions counts half.
    """
    replacer = Replacer([embedding.placeholder for embedding in recipe.embeddings])
    times, found = counts_per_epoch(quotas), {embedding.placeholder: (0, 0.0) for embedding in recipe.embeddings}
    for example, texts in enumerate(captions):
        for embedding, share in _shares(replacer, texts).items():
            images, count = found[embedding]
            found[embedding] = images + 1, count + share * times.get(example, 0.0)
    return found


class Order:
    """The batches of every epoch. `shapes` has the shape of each example; a batch has examples of one shape.

    An epoch has the quotas of the concepts, shuffled. The examples of a shape are split evenly: five of them at a
    batch size of four make batches of three and two, none is dropped and none is repeated to fill a batch.
    """

    def __init__(self, quotas: Sequence[ConceptQuota], shapes: Sequence[Hashable], size: int, seed: int) -> None:
        self.quotas, self.shapes, self.size, self.seed = quotas, shapes, size, seed
        self._regular = len(set(shapes)) == 1 or all(one.per_epoch % len(one.examples) == 0 for one in quotas)
        self._starts = [0]  # index of the first batch of each epoch, if epochs differ in length
        self._cached: tuple[int, list[tuple[int, ...]]] = (-1, [])

    @cached_property
    def batches_per_epoch(self) -> int:
        """Batches of the first epoch. Others may differ a little if there are several shapes and examples rotate."""
        return len(self.epoch(0))

    def at(self, number: int) -> tuple[int, ...]:
        """The examples of the `number`-th batch of the run, from 0."""
        if self._regular:
            epoch, position = divmod(number, self.batches_per_epoch)
        else:
            while self._starts[-1] <= number:
                self._starts.append(self._starts[-1] + len(self.epoch(len(self._starts) - 1)))
            epoch = bisect_right(self._starts, number) - 1
            position = number - self._starts[epoch]
        return self.epoch(epoch)[position]

    def epoch(self, number: int) -> list[tuple[int, ...]]:
        """All batches of one epoch, in their order."""
        if self._cached[0] != number:
            self._cached = (number, self._batches(number))
        return self._cached[1]

    def _batches(self, epoch: int) -> list[tuple[int, ...]]:
        draw = generator(self.seed, "order", epoch)
        examples = [example for number in range(len(self.quotas)) for example in self._examples_of(number, epoch)]
        groups: dict[Hashable, list[int]] = {}
        for example in examples:
            groups.setdefault(self.shapes[example], []).append(example)
        batches = []
        for group in groups.values():
            mixed = [group[index] for index in _shuffled(len(group), draw)]
            count = -(-len(mixed) // self.size)
            ends = [len(mixed) * part // count for part in range(count + 1)]
            batches += [tuple(mixed[begin:end]) for begin, end in pairwise(ends)]
        return [batches[index] for index in _shuffled(len(batches), draw)]

    def _examples_of(self, concept: int, epoch: int) -> list[int]:
        """The examples of one concept in an epoch: its part of an endless sequence of shuffles of all."""
        quota = self.quotas[concept]
        length = len(quota.examples)
        if quota.per_epoch == length:
            return list(quota.examples)
        begin, end = epoch * quota.per_epoch, (epoch + 1) * quota.per_epoch
        row: list[int] = []
        for number in range(begin // length, -(-end // length)):
            row += _shuffled(length, generator(self.seed, "turns", concept, number))
        first = begin - begin // length * length
        return [quota.examples[index] for index in row[first : first + quota.per_epoch]]


def _shuffled(count: int, draw: torch.Generator) -> list[int]:
    """The numbers below `count` in a random order."""
    import torch

    order: list[int] = torch.randperm(count, generator=draw).tolist()
    return order
