"""How a crop of an image is shown: which part, flipped or not, in which colours."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import ceil, floor
from typing import Any

import numpy
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from ..recipe.model import Concept
from .buckets import CENTRE, Shape, turned_box


@dataclass(frozen=True)
class Variant:
    """`place` is that of `cut_box`; brightness, contrast and saturation are factors; `hue` is a part of the circle.

    `turn` is in degrees, against the clock.
    """

    place: tuple[float, float] = CENTRE
    flip: bool = False
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    turn: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """For the key of a cache: equal only for variants that show an image in the same way."""
        facts = asdict(self)
        if not self.turn:
            del facts["turn"]  # the keys of what was kept before images could be turned
        return facts


def varies(concept: Concept) -> bool:
    """Whether the images of a concept are shown in several variants, mirrored ones aside."""
    colours = concept.brightness, concept.contrast, concept.saturation, concept.hue
    return concept.crop == "random" or concept.rotate > 0 or any(colours)


def drawn_variant(concept: Concept, flip: bool, draw: torch.Generator) -> Variant:
    """A random variant within what the concept allows."""
    across, down, *chances = torch.rand(7, generator=draw, dtype=torch.float64).tolist()
    bright, contrast, colour, hue, turn = (2 * chance - 1 for chance in chances)
    return Variant(
        (across, down) if concept.crop == "random" else CENTRE, flip, 1 + bright * concept.brightness,
        1 + contrast * concept.contrast, 1 + colour * concept.saturation, hue * concept.hue, turn * concept.rotate,
    )  # fmt: skip


def apply_variant(image: Image.Image, cut: Shape, variant: Variant) -> Tensor:
    """(3, height, width) float32 in -1..1: turned, cut and resized (Lanczos) to `cut`, then colours, then mirrored."""
    shown = _part(image, cut, variant, cut, Image.Resampling.LANCZOS)
    for enhance, factor in (
        (ImageEnhance.Brightness, variant.brightness), (ImageEnhance.Contrast, variant.contrast),
        (ImageEnhance.Color, variant.saturation),
    ):  # fmt: skip
        if factor != 1.0:
            shown = enhance(shown).enhance(factor)
    if variant.hue:
        shift = round(variant.hue * 256)
        hue, *rest = shown.convert("HSV").split()
        turned = Image.fromarray((numpy.asarray(hue).astype(numpy.int16) + shift).astype(numpy.uint8))
        shown = Image.merge("HSV", (turned, *rest)).convert("RGB")
    values = torch.from_numpy(numpy.asarray(shown, dtype=numpy.float32) / 127.5 - 1).permute(2, 0, 1)
    return (values.flip(-1) if variant.flip else values).contiguous()


def apply_variant_to_mask(mask: Image.Image, cut: Shape, variant: Variant, height: int, width: int) -> Tensor:
    """(1, height, width) uint8: the same part of the mask, averaged to the resolution of the latents."""
    shown = _part(mask, cut, variant, (width, height), Image.Resampling.BOX)
    values = torch.from_numpy(numpy.array(shown, dtype=numpy.uint8)).unsqueeze(0)
    return (values.flip(-1) if variant.flip else values).contiguous()


def _part(image: Image.Image, cut: Shape, variant: Variant, size: Shape, how: Image.Resampling) -> Image.Image:
    """The part of an image that a variant shows, in `size`."""
    left, top, right, bottom = box = turned_box(image.size, cut, variant.place, variant.turn)
    if variant.turn:
        middle = (left + right) / 2, (top + bottom) / 2
        edge = floor(left), floor(top), ceil(right), ceil(bottom)  # resizing looks at all there is around its box
        image = image.rotate(variant.turn, Image.Resampling.BICUBIC, center=middle).crop(edge)
        box = left - edge[0], top - edge[1], right - edge[0], bottom - edge[1]
    return image.resize(size, how, box=box)
