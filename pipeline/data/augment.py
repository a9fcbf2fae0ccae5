"""Augmentations of an image: crop, rotation, flip and colours."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import ceil, floor
from typing import Any

import numpy
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from ..recipe.model import Concept
from .buckets import CENTRE, Shape, rotated_box


@dataclass(frozen=True)
class Variant:
    """One augmentation. `position` is that of `crop_box`; brightness, contrast and saturation are factors.

    `hue` is a fraction of the colour circle, `turn` an angle in degrees, counterclockwise.
    """

    position: tuple[float, float] = CENTRE
    flip: bool = False
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    turn: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """For cache keys: equal only for variants with the same result."""
        return asdict(self)


def is_augmented(concept: Concept) -> bool:
    """Whether the images of a concept are augmented in other ways than flipping."""
    colours = concept.brightness, concept.contrast, concept.saturation, concept.hue
    return concept.crop == "random" or concept.rotate > 0 or any(colours)


def random_variant(concept: Concept, flip: bool, draw: torch.Generator) -> Variant:
    """A random variant within the ranges of the concept."""
    across, down, *chances = torch.rand(7, generator=draw, dtype=torch.float64).tolist()
    bright, contrast, colour, hue, turn = (2 * chance - 1 for chance in chances)
    return Variant(
        (across, down) if concept.crop == "random" else CENTRE, flip, 1 + bright * concept.brightness,
        1 + contrast * concept.contrast, 1 + colour * concept.saturation, hue * concept.hue, turn * concept.rotate,
    )  # fmt: skip


def apply_variant(image: Image.Image, crop: Shape, variant: Variant) -> Tensor:
    """(3, height, width) float32 in -1..1: rotated, cropped, resized (Lanczos) to `crop`; colours; flipped."""
    cropped = _crop(image, crop, variant, crop, Image.Resampling.LANCZOS)
    for enhance, factor in (
        (ImageEnhance.Brightness, variant.brightness), (ImageEnhance.Contrast, variant.contrast),
        (ImageEnhance.Color, variant.saturation),
    ):  # fmt: skip
        if factor != 1.0:
            cropped = enhance(cropped).enhance(factor)
    if variant.hue:
        shift = round(variant.hue * 256)
        hue, *rest = cropped.convert("HSV").split()
        turned = Image.fromarray((numpy.asarray(hue).astype(numpy.int16) + shift).astype(numpy.uint8))
        cropped = Image.merge("HSV", (turned, *rest)).convert("RGB")
    values = torch.from_numpy(numpy.asarray(cropped, dtype=numpy.float32) / 127.5 - 1).permute(2, 0, 1)
    return (values.flip(-1) if variant.flip else values).contiguous()


def apply_variant_to_mask(mask: Image.Image, crop: Shape, variant: Variant, height: int, width: int) -> Tensor:
    """(1, height, width) uint8: the same crop of the mask, averaged to the resolution of the latents."""
    cropped = _crop(mask, crop, variant, (width, height), Image.Resampling.BOX)
    values = torch.from_numpy(numpy.array(cropped, dtype=numpy.uint8)).unsqueeze(0)
    return (values.flip(-1) if variant.flip else values).contiguous()


def _crop(image: Image.Image, crop: Shape, variant: Variant, size: Shape, resampling: Image.Resampling) -> Image.Image:
    """The crop of an image in a variant, resized to `size`."""
    left, top, right, bottom = box = rotated_box(image.size, crop, variant.position, variant.turn)
    if variant.turn:
        middle = (left + right) / 2, (top + bottom) / 2
        edge = floor(left), floor(top), ceil(right), ceil(bottom)  # resizing reads pixels around its box
        image = image.rotate(variant.turn, Image.Resampling.BICUBIC, center=middle).crop(edge)
        box = left - edge[0], top - edge[1], right - edge[0], bottom - edge[1]
    return image.resize(size, resampling, box=box)
