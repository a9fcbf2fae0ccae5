"""Which images make which batch: every image exactly once an epoch, unless the recipe balances them. Needs no torch."""

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
class Turns:
    """The examples of one concept, each as often as it is repeated, and how many of them an epoch shows.

    Fewer or more than there are: the examples take turns, so that over the epochs each is shown as often as any other.
    """

    examples: tuple[int, ...]
    per_epoch: int


def turns_of(recipe: Recipe, captions: Sequence[Sequence[Sequence[str]]]) -> list[Turns]:
    """The turns of every concept that has images; `captions` holds those of each image of each concept.

    Examples are numbered through all concepts in their order. The recipe's `data.balance` is applied.
    """
    counts = [len(images) for images in captions]
    sizes = [
        concept.images_per_epoch or count * concept.repeats
        for concept, count in zip(recipe.concepts, counts, strict=True)
    ]
    factors = [[1] * count for count in counts]
    if recipe.data.balance == "embeddings":
        factors = _embedding_factors(recipe, captions)
        sizes = [
            concept.images_per_epoch or sum(row) * concept.repeats
            for concept, row in zip(recipe.concepts, factors, strict=True)
        ]
    if recipe.data.balance == "concepts":
        most = max(sizes, default=0)
        sizes = [concept.images_per_epoch or most for concept in recipe.concepts]
    turns, first = [], 0
    for concept, row, size in zip(recipe.concepts, factors, sizes, strict=True):
        numbers = [first + place for place, factor in enumerate(row) for _ in range(factor)]
        first += len(row)
        if numbers:
            turns.append(Turns(tuple(numbers) * (1 if concept.images_per_epoch else concept.repeats), size))
    return turns


def _embedding_factors(recipe: Recipe, captions: Sequence[Sequence[Sequence[str]]]) -> list[list[int]]:
    """How many times each image is shown so that every embedding is seen about as often as the most frequent one.

    An image counts for an embedding by the share of its captions that hold it. With several embeddings in one image the
    rarest decides.
    """
    replacer = Replacer([embedding.placeholder for embedding in recipe.embeddings])
    held = [[_shares(replacer, texts) for texts in images] for images in captions]
    total: Counter[str] = Counter()
    for concept, images in zip(recipe.concepts, held, strict=True):
        for shares in images:
            total.update({embedding: share * concept.repeats for embedding, share in shares.items()})
    most = max(total.values(), default=0)
    return [
        [max([round(most / total[embedding]) for embedding in shares], default=1) for shares in row] for row in held
    ]


def _shares(replacer: Replacer, texts: Sequence[str]) -> dict[str, float]:
    found: Counter[str] = Counter(embedding for text in texts for embedding in set(replacer.embeddings_in(text)))
    return {embedding: count / len(texts) for embedding, count in found.items()}


def shown_counts(turns: Iterable[Turns]) -> dict[int, float]:
    """How many times an epoch shows each example, on average over the epochs."""
    counts: dict[int, float] = {}
    for turn in turns:
        for example, times in Counter(turn.examples).items():
            counts[example] = counts.get(example, 0.0) + times * turn.per_epoch / len(turn.examples)
    return counts


def batches_of(turns: Iterable[Turns], shapes: Sequence[Hashable], size: int) -> int:
    """Batches of an epoch: each shape's showings are split evenly into as few as will do. Exact but for turns."""
    by_shape: dict[Hashable, float] = {}
    for example, times in shown_counts(turns).items():
        by_shape[shapes[example]] = by_shape.get(shapes[example], 0.0) + times
    return sum(-(-round(times) // size) for times in by_shape.values())


def embedding_counts(
    recipe: Recipe, captions: Sequence[Sequence[str]], turns: Iterable[Turns]
) -> dict[str, tuple[int, float]]:
    """For each embedding the images that hold it, and how many times an epoch shows it on average.

    `captions` holds those of each example; an image with the embedding in half of its captions shows it half the time.
    """
    replacer = Replacer([embedding.placeholder for embedding in recipe.embeddings])
    times, found = shown_counts(turns), {embedding.placeholder: (0, 0.0) for embedding in recipe.embeddings}
    for example, texts in enumerate(captions):
        for embedding, share in _shares(replacer, texts).items():
            images, shown = found[embedding]
            found[embedding] = images + 1, shown + share * times.get(example, 0.0)
    return found


class Order:
    """The batches of every epoch. `shapes` has the shape of each example; a batch holds examples of one shape.

    An epoch shows what its concepts' turns say, shuffled. The examples of a shape are split evenly: five of them at a
    batch size of four make batches of three and two, none is left out and none is shown twice to fill up a batch.
    """

    def __init__(self, turns: Sequence[Turns], shapes: Sequence[Hashable], size: int, seed: int) -> None:
        self.turns, self.shapes, self.size, self.seed = turns, shapes, size, seed
        self._regular = len(set(shapes)) == 1 or all(turn.per_epoch % len(turn.examples) == 0 for turn in turns)
        self._starts = [0]  # number of the first batch of each epoch, where epochs differ in length
        self._kept: tuple[int, list[tuple[int, ...]]] = (-1, [])

    @cached_property
    def batches_per_epoch(self) -> int:
        """Batches of the first epoch. Later ones differ by a few where several shapes meet concepts that take turns."""
        return len(self.epoch(0))

    def at(self, number: int) -> tuple[int, ...]:
        """The examples of the `number`-th batch of the run, from 0: the same whatever was asked before."""
        if self._regular:
            epoch, place = divmod(number, self.batches_per_epoch)
        else:
            while self._starts[-1] <= number:
                self._starts.append(self._starts[-1] + len(self.epoch(len(self._starts) - 1)))
            epoch = bisect_right(self._starts, number) - 1
            place = number - self._starts[epoch]
        return self.epoch(epoch)[place]

    def epoch(self, number: int) -> list[tuple[int, ...]]:
        """All batches of one epoch, in their order."""
        if self._kept[0] != number:
            self._kept = (number, self._made(number))
        return self._kept[1]

    def _made(self, epoch: int) -> list[tuple[int, ...]]:
        draw = generator(self.seed, "order", epoch)
        shown = [example for number in range(len(self.turns)) for example in self._turn(number, epoch)]
        groups: dict[Hashable, list[int]] = {}
        for example in shown:
            groups.setdefault(self.shapes[example], []).append(example)
        batches = []
        for group in groups.values():
            mixed = [group[place] for place in _shuffled(len(group), draw)]
            count = -(-len(mixed) // self.size)
            ends = [len(mixed) * part // count for part in range(count + 1)]
            batches += [tuple(mixed[begin:end]) for begin, end in pairwise(ends)]
        return [batches[place] for place in _shuffled(len(batches), draw)]

    def _turn(self, concept: int, epoch: int) -> list[int]:
        """What one concept shows in an epoch: its share of an endless row of rounds, each round a shuffle of all."""
        turn = self.turns[concept]
        length = len(turn.examples)
        if turn.per_epoch == length:
            return list(turn.examples)
        begin, end = epoch * turn.per_epoch, (epoch + 1) * turn.per_epoch
        row: list[int] = []
        for number in range(begin // length, -(-end // length)):
            row += _shuffled(length, generator(self.seed, "turns", concept, number))
        first = begin - begin // length * length
        return [turn.examples[place] for place in row[first : first + turn.per_epoch]]


def _shuffled(count: int, draw: torch.Generator) -> list[int]:
    """The numbers below `count` in a random order."""
    import torch

    order: list[int] = torch.randperm(count, generator=draw).tolist()
    return order
