"""The pictures of a recipe as batches for training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..recipe.model import Concept, Recipe
from ..train.draws import generator
from .batch import Batch
from .captions import read_captions
from .latents import Latents
from .order import Order, Turns


@dataclass(frozen=True)
class Example:
    """One picture of a concept and the captions it may be shown with; one of them is drawn each time."""

    picture: Path
    captions: tuple[str, ...]
    concept: Concept


class Dataset:
    """Batches by their number: `at(number)` is a function of the seed and the number, whatever was asked before.

    `examples` are the pictures, `order` says which of them make which batch, `latents` what the VAE says of them.
    """

    def __init__(
        self, examples: Sequence[Example], order: Order, latents: Latents, seed: int, *, flip: bool = False,
        caption_dropout: float = 0.0,
    ) -> None:  # fmt: skip
        self.examples, self.order, self.latents, self.seed = examples, order, latents, seed
        self.flip, self.caption_dropout = flip, caption_dropout

    @property
    def batches_per_epoch(self) -> int:
        """Batches in which every picture is shown as often as its concept says."""
        return self.order.batches_per_epoch

    def at(self, number: int) -> Batch:
        """The `number`-th batch of the run, from 0."""
        shown = self.order.at(number)
        chances = torch.rand(3, len(shown), generator=generator(self.seed, "captions", number)).tolist()
        examples = [self.examples[place] for place in shown]
        captions = tuple(
            "" if drop < self.caption_dropout else _pick(example.captions, choice)
            for example, choice, drop in zip(examples, chances[0], chances[1], strict=True)
        )
        flipped = [self.flip and chance < 0.5 for chance in chances[2]]
        wanted = [(example.picture, flip) for example, flip in zip(examples, flipped, strict=True)]
        return Batch(
            captions=captions,
            latents=self.latents.draw(wanted, generator(self.seed, "latents", number)),
            mask=None,
            weight=torch.ones(len(shown)),
            prior=torch.zeros(len(shown), dtype=torch.bool),
            sizes=torch.tensor([self.latents.sizes[picture] for picture in wanted]),
            examples=shown,
        )


def open_dataset(
    recipe: Recipe, vae: Any, *, resolution: int, batch_size: int, seed: int, flip: bool = False,
    caption_dropout: float = 0.0,
) -> Dataset:  # fmt: skip
    """The pictures of a recipe, encoded; `seed` is the train stage's own."""
    examples: list[Example] = []
    turns: list[Turns] = []
    for concept in recipe.concepts:
        here = [Example(path, tuple(captions), concept) for path, captions in read_captions(concept)]
        numbers = tuple(range(len(examples), len(examples) + len(here)))
        turns.append(Turns(numbers * concept.repeats, len(here) * concept.repeats))
        examples += here
    order = Order(turns, [(resolution, resolution)] * len(examples), batch_size, seed)
    paths = list(dict.fromkeys(example.picture for example in examples))
    latents = Latents(vae, paths, resolution, flip=flip)
    return Dataset(examples, order, latents, seed, flip=flip, caption_dropout=caption_dropout)


def _pick(captions: Sequence[str], chance: float) -> str:
    return captions[int(chance * len(captions))]
