"""The images of a recipe as batches for training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..distributed import SINGLE_PROCESS, Processes
from ..errors import StageError
from ..recipe.model import Concept, Recipe
from ..rng import generator
from ..text import count_of
from .augment import Variant
from .buckets import size_conditioning
from .cache import Cache, Encoded, cache_folder
from .epochs import Order
from .examples import Example, read_examples
from .latents import Latents
from .tags import augment_tags, changes_tags, draw_wildcards


@dataclass(frozen=True, eq=False)
class Batch:
    """One micro-batch: images of one shape with a caption each. Tensors are on the CPU, float32 by default.

    `Dataset.at(number)` makes it, as a function of (seed, number) alone.

    - `captions`: for the text encoders; "" where the caption was dropped.
    - `latents` (batch, channels, height, width): sampled from the VAE's distribution of each image, in the denoiser's
      scale.
    - `mask` (batch, 1, height, width), 0 to 1, in the resolution of the latents: 1 where the loss counts. Ones for an
      image without a mask. None when no image of the batch has one.
    - `weight` (batch,): the weight of each image's loss (`loss_weight` of its concept), of which the loss of a
      batch is the mean.
    - `prior` (batch,), bool: images of a concept with `prior = true` (prior preservation, DreamBooth), and
      `prior_of_model` those of them whose target is the prediction of the model without the LoRA.
    - `sizes` (batch, 6): original height and width, top and left of the crop, height and width it is trained at, in
      pixels: SDXL's `time_ids`. The corner is that in the image resized to cover the trained size.
    - `examples`: indices of the images in `Dataset.examples`, for logs and tests.
    - `full`: the full batch, if this process has only a part of it; else None.
    - `idle`: it does not count, and only keeps a process without images in step with the others.
    """

    captions: tuple[str, ...]
    latents: Tensor
    mask: Tensor | None
    weight: Tensor
    prior: Tensor
    prior_of_model: Tensor
    sizes: Tensor
    examples: tuple[int, ...]
    full: FullBatch | None = None
    idle: bool = False


@dataclass(frozen=True, eq=False)
class FullBatch:
    """The batch of which a process has the images `part`, with each image's `weight` and `prior`."""

    part: slice
    weight: Tensor
    prior: Tensor

    @property
    def size(self) -> int:
        return len(self.weight)


ALL = slice(None)


class Dataset:
    """Batches by their number: `at(number)` is a function of the seed and the number alone.

    `examples` are the images, `order` gives the images of each batch, `latents` encodes them. `held_out` are the images
    for validation, in no batch.
    """

    def __init__(
        self, examples: Sequence[Example], order: Order, latents: Latents, seed: int, *, flip: bool = False,
        caption_dropout: float = 0.0, held_out: Sequence[Example] = (),
    ) -> None:  # fmt: skip
        self.held_out = held_out
        self.examples, self.order, self.latents, self.seed = examples, order, latents, seed
        self.flip, self.caption_dropout = flip, caption_dropout
        self._drawn = lru_cache(maxsize=64)(self._draw)  # a step asks for its captions before it asks for its batches

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches in an epoch."""
        return self.order.batches_per_epoch

    def size(self, number: int) -> int:
        """Number of images in the `number`-th batch."""
        return len(self.order.at(number))

    def captions(self, number: int) -> tuple[str, ...]:
        """The captions of the `number`-th batch."""
        return self._drawn(number)[1]

    def at(self, number: int, part: slice = ALL) -> Batch:
        """The `number`-th batch of the run, from 0, or a part of it, with the same values as in the full batch."""
        indices, (chances, captions) = self.order.at(number), self._drawn(number)
        every = [self.examples[index] for index in indices]
        examples = every[part]
        variants = [
            self.latents.choose_variant(
                example, self._flips(example, side), chance, number * self.order.size + position
            )
            for position, (example, side, chance) in enumerate(zip(every, chances[2], chances[3], strict=True))
        ][part]
        encoded = [self.latents.get(example, variant) for example, variant in zip(examples, variants, strict=True)]
        sizes = [
            size_conditioning(example.size, example.crop, variant.position, variant.flip)
            for example, variant in zip(examples, variants, strict=True)
        ]
        weight = torch.tensor([example.concept.loss_weight for example in every])
        prior = torch.tensor([example.concept.prior for example in every])
        return Batch(
            captions=captions[part],
            latents=self._latents(encoded, number, len(every), part),
            mask=_mask(encoded),
            weight=weight[part],
            prior=prior[part],
            prior_of_model=torch.tensor([_asks_the_model(example.concept) for example in examples]),
            sizes=torch.tensor(sizes),
            examples=indices[part],
            full=None if len(examples) == len(every) else FullBatch(part, weight, prior),
        )

    def held_out_image(self, index: int) -> Batch:
        """A held-out image as a batch of one: not augmented, its first caption with wildcards that are always the same,
        the mean of the VAE's distribution.
        """
        example, variant = self.held_out[index], Variant()
        encoded = [self.latents.get(example, variant)]
        return Batch(
            captions=self._captions([example], [0.0], [1.0], index),
            latents=self.latents.normalize(encoded[0].mean.unsqueeze(0)),
            mask=_mask(encoded),
            weight=torch.ones(1),
            prior=torch.zeros(1, dtype=torch.bool),
            prior_of_model=torch.zeros(1, dtype=torch.bool),
            sizes=torch.tensor([size_conditioning(example.size, example.crop, variant.position, variant.flip)]),
            examples=(index,),
        )

    def _draw(self, number: int) -> tuple[list[list[float]], tuple[str, ...]]:
        """Four chances from 0 to 1 for each image of a batch (caption, dropout, flip, variant), and its captions."""
        examples = [self.examples[index] for index in self.order.at(number)]
        draw = generator(self.seed, "captions", number)
        chances: list[list[float]] = torch.rand(4, len(examples), generator=draw).tolist()
        return chances, self._captions(examples, chances[0], chances[1], number)

    def _flips(self, example: Example, chance: float) -> bool:
        return (self.flip or example.concept.flip) and chance < 0.5

    def _captions(
        self, examples: Sequence[Example], choices: Sequence[float], drops: Sequence[float], number: int
    ) -> tuple[str, ...]:
        draw = cache(lambda purpose: generator(self.seed, purpose, number))  # most captions need none
        captions = []
        for example, choice, drop in zip(examples, choices, drops, strict=True):
            caption = example.captions[int(choice * len(example.captions))]
            if example.concept.wildcards:
                caption = draw_wildcards(caption, lambda count: torch.rand(count, generator=draw("wildcards")).tolist())
            if changes_tags(example.concept):
                caption = augment_tags(
                    caption, example.concept,
                    lambda count: torch.rand(count, generator=draw("tags")).tolist(),
                    lambda count: torch.randperm(count, generator=draw("tags")).tolist(),
                )  # fmt: skip
            captions.append("" if drop < self.caption_dropout else caption)
        return tuple(captions)

    def _latents(self, encoded: Sequence[Encoded], number: int, count: int, part: slice) -> Tensor:
        mean = torch.stack([one.mean for one in encoded])
        deviation = torch.stack([one.deviation for one in encoded])
        if not bool(deviation.any()):  # of an encoder without a distribution: no noise is drawn that nothing uses
            return self.latents.normalize(mean)
        noise = torch.randn(count, *mean.shape[1:], generator=generator(self.seed, "latents", number))[part]
        return self.latents.normalize(mean + deviation * noise)


def _asks_the_model(concept: Concept) -> bool:
    return concept.prior and concept.prior_target == "model"


def _mask(encoded: Sequence[Encoded]) -> Tensor | None:
    if all(one.mask is None for one in encoded):
        return None
    ones = torch.full((1, *encoded[0].mean.shape[-2:]), 255, dtype=torch.uint8)
    return torch.stack([ones if one.mask is None else one.mask for one in encoded]).float() / 255


def open_dataset(
    recipe: Recipe, vae: Any, *, resolution: int, multiple: int = 1, batch_size: int, seed: int, flip: bool = False,
    caption_dropout: float = 0.0, run_folder: Path | None = None, warn: Callable[[str], None] | None = None,
    tell: Callable[[str], None] | None = None, bar: bool = False, processes: Processes = SINGLE_PROCESS,
) -> Dataset:  # fmt: skip
    """The dataset of a recipe, with its images encoded or found in the cache.

    `seed` is the train stage's; the variants of images depend on the recipe's seed, so that stages share them. `warn`
    gets warnings, `tell` gets messages. Each of several `processes` encodes its share. Raises StageError that lists
    every image that cannot be used.
    """
    read, data = read_examples(recipe, resolution), recipe.data
    if not read.rows and not read.problems:
        raise StageError("no images; add a [[concept]] with images = a folder")
    crops = [example.crop for example in (*read.rows, *read.held_out)]
    odd = next((crop for crop in crops if crop[0] % multiple or crop[1] % multiple), None)
    if odd is not None:
        fix = "set resolution and data.bucket_step to such"
        raise StageError(f"crops of {odd[0]}x{odd[1]} pixels: this model needs multiples of {multiple} pixels; {fix}")
    folder = cache_folder(data.cache_latents, run_folder)
    latents = Latents(
        vae, recipe.seed, variants=data.variants, cache=Cache(folder) if folder else None,
        fresh=data.cache_latents == "off",
    )  # fmt: skip
    latents.prepare([*read.rows, *read.held_out], read.problems, flip=flip, bar=bar, processes=processes)
    if tell is not None and not latents.fresh:
        misses, hits = (round(number) for number in processes.sum_numbers([latents.misses, latents.hits]))
        images = count_of(len(read.rows) + len(read.held_out), "image")
        tell(f"{images}: {count_of(misses, 'variant')} encoded, {hits} from the cache")
    if latents.unwritable is not None and warn is not None:
        warn(f"encoded images are not cached on disk: {latents.unwritable}")
    order = Order(read.quotas, [example.crop for example in read.rows], batch_size, seed)
    return Dataset(read.rows, order, latents, seed, flip=flip, caption_dropout=caption_dropout, held_out=read.held_out)


def local_batches(dataset: Dataset, numbers: range, processes: Processes, *, in_step: bool) -> list[Batch | None]:
    """This process's part of each of these micro-batches, None if it has none; a single process gets them in full.

    With `in_step` all processes get the same number, some of them `idle`: a sharded part of the model needs all
    processes for every batch.
    """
    if processes.count == 1:
        return [dataset.at(number) for number in numbers]
    with processes.together():  # an image may be gone
        sizes = [dataset.size(number) for number in numbers]
        parts = processes.shares(sizes)
        missing = _most(sizes, processes) - sum(map(_nonempty, parts)) if in_step else 0
        batches: list[Batch | None] = []
        for number, part in zip(numbers, parts, strict=True):
            if _nonempty(part):
                batches.append(dataset.at(number, part))
            elif missing > 0:
                batches.append(replace(dataset.at(number, slice(0, 1)), idle=True))
                missing -= 1
            else:
                batches.append(None)
        return batches


def _most(sizes: Sequence[int], processes: Processes) -> int:
    """The largest number of micro-batches of which a process has images."""
    everyone = (replace(processes, index=index).shares(sizes) for index in range(processes.count))
    return max(sum(map(_nonempty, parts)) for parts in everyone)


def _nonempty(part: slice) -> bool:
    return bool(part.stop > part.start)
