"""Which pictures with which captions a step sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from .draws import generator


@dataclass(frozen=True)
class Example:
    """One picture and the captions it may be shown with; one of them is drawn each time."""

    picture: Path
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Batch:
    """Indices of pictures, their captions, and which of the pictures are mirrored."""

    pictures: tuple[int, ...]
    captions: tuple[str, ...]
    flipped: tuple[bool, ...]


class Batches:
    """The order of examples: each epoch shows every example once, shuffled by the seed and the epoch's number."""

    def __init__(
        self, examples: Sequence[Example], size: int, seed: int, *, flip: bool = False, caption_dropout: float = 0.0
    ) -> None:
        self.examples = examples
        self.size, self.seed, self.flip, self.caption_dropout = size, seed, flip, caption_dropout
        self._epoch = -1
        self._order: list[int] = []

    def at(self, number: int) -> Batch:
        """The `number`-th batch of the run, from 0: the same whatever was asked before."""
        places = range(number * self.size, (number + 1) * self.size)
        pictures = tuple(self._example(place) for place in places)
        draw = generator(self.seed, "captions", number)
        chances = torch.rand(3, len(pictures), generator=draw).tolist()
        captions = tuple(
            "" if drop < self.caption_dropout else _pick(self.examples[picture].captions, choice)
            for picture, choice, drop in zip(pictures, chances[0], chances[1], strict=True)
        )
        return Batch(pictures, captions, tuple(self.flip and chance < 0.5 for chance in chances[2]))

    def _example(self, place: int) -> int:
        epoch, within = divmod(place, len(self.examples))
        if epoch != self._epoch:
            self._order = torch.randperm(len(self.examples), generator=generator(self.seed, "order", epoch)).tolist()
            self._epoch = epoch
        return self._order[within]


def _pick(captions: Sequence[str], chance: float) -> str:
    return captions[int(chance * len(captions))]
