"""How often an epoch shows which picture. Needs no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from ..recipe.model import Recipe
from ..words.placeholders import Replacer


@dataclass(frozen=True)
class Turns:
    """The examples of one concept, each as often as it is repeated, and how many of them an epoch shows.

    Fewer or more than there are: the examples take turns, so that over the epochs each is shown as often as any other.
    """

    examples: tuple[int, ...]
    per_epoch: int


def turns_of(recipe: Recipe, captions: Sequence[Sequence[Sequence[str]]]) -> list[Turns]:
    """The turns of every concept that has pictures; `captions` holds those of each picture of each concept.

    Examples are numbered through all concepts in their order. The recipe's `data.balance` is applied.
    """
    counts = [len(pictures) for pictures in captions]
    sizes = [concept.samples or count * concept.repeats for concept, count in zip(recipe.concepts, counts, strict=True)]
    factors = [[1] * count for count in counts]
    if recipe.data.balance == "words":
        factors = _word_factors(recipe, captions)
        sizes = [
            concept.samples or sum(row) * concept.repeats for concept, row in zip(recipe.concepts, factors, strict=True)
        ]
    if recipe.data.balance == "concepts":
        most = max(sizes, default=0)
        sizes = [concept.samples or most for concept in recipe.concepts]
    turns, first = [], 0
    for concept, row, size in zip(recipe.concepts, factors, sizes, strict=True):
        numbers = [first + place for place, factor in enumerate(row) for _ in range(factor)]
        first += len(row)
        if numbers:
            turns.append(Turns(tuple(numbers) * (1 if concept.samples else concept.repeats), size))
    return turns


def _word_factors(recipe: Recipe, captions: Sequence[Sequence[Sequence[str]]]) -> list[list[int]]:
    """How many times each picture is shown so that every word is seen about as often as the most frequent one.

    A picture counts for a word by the share of its captions that hold it. With several words in one picture the
    rarest decides.
    """
    replacer = Replacer([word.placeholder for word in recipe.words])
    held = [[_shares(replacer, texts) for texts in pictures] for pictures in captions]
    total: Counter[str] = Counter()
    for concept, pictures in zip(recipe.concepts, held, strict=True):
        for shares in pictures:
            total.update({word: share * concept.repeats for word, share in shares.items()})
    most = max(total.values(), default=0)
    return [[max([round(most / total[word]) for word in shares], default=1) for shares in row] for row in held]


def _shares(replacer: Replacer, texts: Sequence[str]) -> dict[str, float]:
    found: Counter[str] = Counter(word for text in texts for word in set(replacer.words_in(text)))
    return {word: count / len(texts) for word, count in found.items()}


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


def word_counts(
    recipe: Recipe, captions: Sequence[Sequence[str]], turns: Iterable[Turns]
) -> dict[str, tuple[int, float]]:
    """For each word the pictures that hold it, and how many times an epoch shows it on average.

    `captions` holds those of each example; a picture with the word in half of its captions shows it half the time.
    """
    replacer = Replacer([word.placeholder for word in recipe.words])
    times, found = shown_counts(turns), {word.placeholder: (0, 0.0) for word in recipe.words}
    for example, texts in enumerate(captions):
        for word, share in _shares(replacer, texts).items():
            pictures, shown = found[word]
            found[word] = pictures + 1, shown + share * times.get(example, 0.0)
    return found
