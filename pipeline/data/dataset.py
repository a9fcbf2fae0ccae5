"""The images of a recipe as batches for training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..distributed import SINGLE_PROCESS, Processes
from ..errors import StageError
from ..recipe.model import Recipe
from ..rng import generator
from .buckets import size_conditioning
from .cache import Cache, Encoded, cache_folder
from .caption_files import changes_tags, shown_tags
from .epochs import Order
from .examples import Example, read_examples
from .latents import Latents


@dataclass(frozen=True, eq=False)
class Batch:
    """One micro-batch: images of one shape with a caption each. Everything is on the CPU and float32 unless said.

    `Dataset.at(number)` makes it, as a function of (seed, number) alone.

    - `captions`: as the text encoders get them; "" where the caption was dropped.
    - `latents` (batch, channels, height, width): drawn from what the VAE says of each image, scaled to the range of
      the denoiser.
    - `mask` (batch, 1, height, width), 0 to 1, in the resolution of the latents: 1 where the loss counts. An image
      without a mask has ones. None when no image of the batch has one.
    - `weight` (batch,): how much each image's loss counts (`loss_weight` of its concept); the loss of a batch is
      the mean of each image's loss times this.
    - `prior` (batch,), bool: images of a concept with `prior = true`, which show what the model should go on
      knowing (prior preservation, DreamBooth).
    - `sizes` (batch, 6): original height and width, top and left of the crop, height and width it is trained at, in
      pixels: SDXL's `time_ids`. The crop's corner counts in the image resized to cover the trained size.
    - `examples`: numbers of the images in `Dataset.examples`, for logs and tests.
    - `whole`: where only some of the batch's images are here (several processes), what the others are; else None.
    - `idle`: it counts nothing, and only keeps a process that has nothing to do in step with the others.
    """

    captions: tuple[str, ...]
    latents: Tensor
    mask: Tensor | None
    weight: Tensor
    prior: Tensor
    sizes: Tensor
    examples: tuple[int, ...]
    whole: Whole | None = None
    idle: bool = False


@dataclass(frozen=True, eq=False)
class Whole:
    """The batch that a process has a part of: which part, and each image's `weight` and `prior`."""

    place: slice
    weight: Tensor
    prior: Tensor

    @property
    def size(self) -> int:
        return len(self.weight)


WHOLE = slice(None)


class Dataset:
    """Batches by their number: `at(number)` is a function of the seed and the number, whatever was asked before.

    `examples` are the images, `order` says which of them make which batch, `latents` what the VAE says of them.
    """

    def __init__(
        self, examples: Sequence[Example], order: Order, latents: Latents, seed: int, *, flip: bool = False,
        caption_dropout: float = 0.0,
    ) -> None:  # fmt: skip
        self.examples, self.order, self.latents, self.seed = examples, order, latents, seed
        self.flip, self.caption_dropout = flip, caption_dropout

    @property
    def batches_per_epoch(self) -> int:
        """Batches in which every image is shown as often as its concept says."""
        return self.order.batches_per_epoch

    def size(self, number: int) -> int:
        """How many images the `number`-th batch has."""
        return len(self.order.at(number))

    def captions(self, number: int) -> tuple[str, ...]:
        """The captions of the `number`-th batch."""
        chances = self._chances(number)
        examples = [self.examples[place] for place in self.order.at(number)]
        return self._captions(examples, chances[0], chances[1], number)

    def at(self, number: int, part: slice = WHOLE) -> Batch:
        """The `number`-th batch of the run, from 0, or a part of it: the same numbers as in the whole batch."""
        places, chances, captions = self.order.at(number), self._chances(number), self.captions(number)
        every = [self.examples[place] for place in places]
        examples = every[part]
        variants = [
            self.latents.shown(example, self._flips(example, side), chance, number * self.order.size + place)
            for place, (example, side, chance) in enumerate(zip(every, chances[2], chances[3], strict=True))
        ][part]
        told = [self.latents.get(example, variant) for example, variant in zip(examples, variants, strict=True)]
        sizes = [
            size_conditioning(example.size, example.cut, variant.place, variant.flip)
            for example, variant in zip(examples, variants, strict=True)
        ]
        weight = torch.tensor([example.concept.loss_weight for example in every])
        prior = torch.tensor([example.concept.prior for example in every])
        return Batch(
            captions=captions[part],
            latents=self._latents(told, number, len(every), part),
            mask=_mask(told),
            weight=weight[part],
            prior=prior[part],
            sizes=torch.tensor(sizes),
            examples=places[part],
            whole=None if len(examples) == len(every) else Whole(part, weight, prior),
        )

    def _chances(self, number: int) -> list[list[float]]:
        """Four chances from 0 to 1 for each image of a batch: which caption, whether none, flipped, which variant."""
        count = self.size(number)
        drawn: list[list[float]] = torch.rand(4, count, generator=generator(self.seed, "captions", number)).tolist()
        return drawn

    def _flips(self, example: Example, chance: float) -> bool:
        return (self.flip or example.concept.flip) and chance < 0.5

    def _captions(
        self, examples: Sequence[Example], choices: Sequence[float], drops: Sequence[float], number: int
    ) -> tuple[str, ...]:
        draw = generator(self.seed, "tags", number)
        captions = []
        for example, choice, drop in zip(examples, choices, drops, strict=True):
            caption = example.captions[int(choice * len(example.captions))]
            if changes_tags(example.concept):
                caption = shown_tags(
                    caption, example.concept,
                    lambda count: torch.rand(count, generator=draw).tolist(),
                    lambda count: torch.randperm(count, generator=draw).tolist(),
                )  # fmt: skip
            captions.append("" if drop < self.caption_dropout else caption)
        return tuple(captions)

    def _latents(self, told: Sequence[Encoded], number: int, count: int, part: slice) -> Tensor:
        mean = torch.stack([one.mean for one in told])
        deviation = torch.stack([one.deviation for one in told])
        noise = torch.randn(count, *mean.shape[1:], generator=generator(self.seed, "latents", number))[part]
        return (mean + deviation * noise - self.latents.shift) * self.latents.factor


def _mask(told: Sequence[Encoded]) -> Tensor | None:
    if all(one.mask is None for one in told):
        return None
    whole = torch.full((1, *told[0].mean.shape[-2:]), 255, dtype=torch.uint8)
    return torch.stack([whole if one.mask is None else one.mask for one in told]).float() / 255


def open_dataset(
    recipe: Recipe, vae: Any, *, resolution: int, multiple: int = 1, batch_size: int, seed: int, flip: bool = False,
    caption_dropout: float = 0.0, run_folder: Path | None = None, warn: Callable[[str], None] | None = None,
    tell: Callable[[str], None] | None = None, bar: bool = False, processes: Processes = SINGLE_PROCESS,
) -> Dataset:  # fmt: skip
    """The images of a recipe, encoded or found in the cache.

    `seed` is the train stage's own; the variants of images hang on the recipe's, so that two stages share them.
    `warn` is told of what is worth a warning, `tell` of what was done. Of several `processes` each encodes its share.
    Raises StageError that names every image that cannot be used.
    """
    read, data = read_examples(recipe, resolution), recipe.data
    if not read.rows and not read.problems:
        raise StageError("no images; add a [[concept]] with images = a folder")
    odd = next((example.cut for example in read.rows if example.cut[0] % multiple or example.cut[1] % multiple), None)
    if odd is not None:
        raise StageError(f"crops of {odd[0]}x{odd[1]} pixels: this model needs multiples of {multiple} pixels")
    folder = cache_folder(data.cache_latents, run_folder)
    latents = Latents(
        vae, recipe.seed, variants=data.variants, cache=Cache(folder) if folder else None,
        fresh=data.cache_latents == "off",
    )  # fmt: skip
    latents.prepare(read.rows, read.problems, flip=flip, bar=bar, processes=processes)
    if tell is not None and not latents.fresh:
        misses, hits = (round(number) for number in processes.sum_numbers([latents.misses, latents.hits]))
        tell(f"{len(read.rows)} images: {misses} variants encoded, {hits} found encoded")
    if latents.unwritable is not None and warn is not None:
        warn(f"encoded images are not kept on disk: {latents.unwritable}")
    order = Order(read.turns, [example.cut for example in read.rows], batch_size, seed)
    return Dataset(read.rows, order, latents, seed, flip=flip, caption_dropout=caption_dropout)


def portion(dataset: Dataset, numbers: range, processes: Processes, *, in_step: bool) -> list[Batch | None]:
    """This process's part of each of these micro-batches, None where that is nothing; alone it is all of them.

    With `in_step` all processes get equally many, some of them `idle`: a part of the model that is spread over the
    processes asks all of them for every batch.
    """
    if processes.count == 1:
        return [dataset.at(number) for number in numbers]
    with processes.together():  # an image may have vanished
        sizes = [dataset.size(number) for number in numbers]
        parts = processes.shares(sizes)
        missing = _most(sizes, processes) - sum(map(_holds, parts)) if in_step else 0
        batches: list[Batch | None] = []
        for number, part in zip(numbers, parts, strict=True):
            if _holds(part):
                batches.append(dataset.at(number, part))
            elif missing > 0:
                batches.append(replace(dataset.at(number, slice(0, 1)), idle=True))
                missing -= 1
            else:
                batches.append(None)
        return batches


def _most(sizes: Sequence[int], processes: Processes) -> int:
    """The most micro-batches that a process has something of."""
    everyone = (replace(processes, index=index).shares(sizes) for index in range(processes.count))
    return max(sum(map(_holds, parts)) for parts in everyone)


def _holds(part: slice) -> bool:
    return bool(part.stop > part.start)
