"""How images are cropped to buckets, flipped and recoloured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from math import ceil, cos, floor, log, radians, sin
from typing import Any

import numpy
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from ..recipe.model import Concept

Shape = tuple[int, int]  # width and height in pixels
CENTRE = (0.5, 0.5)
LARGE = 256  # resolutions from here on have buckets in steps of 64, as real models need them
EDGE = 2  # pixels at the edge that a turned picture does not show, as nothing is beside them to be mixed with
LEAST_SEEN = 0.1  # a picture of which less than this would be seen is refused


@cache
def bucket_shapes(resolution: int, step: int) -> tuple[Shape, ...]:
    """All shapes whose sides are multiples of `step`, from half to twice `resolution`, of at most its square's area.

    As kohya's scripts make them: for every width the greatest height. ValueError when the step is larger than the
    resolution.
    """
    if step > resolution:
        raise ValueError(f"buckets in steps of {step} pixels do not fit a resolution of {resolution}")
    square = resolution // step * step
    least = max(step, -(-resolution // 2 // step) * step)
    shapes = {(square, square)}
    for long in range(square, 2 * resolution + 1, step):
        short = resolution * resolution // long // step * step
        if short >= least:
            shapes |= {(long, short), (short, long)}
    return tuple(sorted(shapes))


def default_bucket_step(resolution: int) -> int:
    """The step of buckets where the recipe says none."""
    return 64 if resolution >= LARGE else 8


def nearest_shape(size: Shape, shapes: Sequence[Shape]) -> Shape:
    """The shape whose aspect ratio is nearest to that of a picture of `size`; of equal ones the larger."""
    ratio = log(size[0] / size[1])
    return min(shapes, key=lambda shape: (round(abs(log(shape[0] / shape[1]) - ratio), 9), -shape[0] * shape[1], shape))


def cut_shape(size: Shape, resolution: int, step: int | None) -> Shape:
    """What a picture is cut to: the nearest bucket, or without a step the square."""
    return nearest_shape(size, bucket_shapes(resolution, step)) if step else (resolution, resolution)


def visible_share(size: Shape, cut: Shape) -> float:
    """The share of a picture that is seen when it is cut to this shape."""
    ratios = size[0] * cut[1], cut[0] * size[1]
    return min(ratios) / max(ratios)


def cut_box(size: Shape, cut: Shape, place: tuple[float, float] = CENTRE) -> tuple[float, float, float, float]:
    """The part of a picture of `size` with the aspect ratio of `cut`: left, top, right, bottom in its own pixels.

    `place` from (0, 0), left and top, to (1, 1), right and bottom. What is left is then resized to `cut`.
    """
    width, height = size[0], size[1]
    box = (width, width * cut[1] / cut[0]) if width * cut[1] <= height * cut[0] else (height * cut[0] / cut[1], height)
    left, top = (width - box[0]) * place[0], (height - box[1]) * place[1]
    return left, top, left + box[0], top + box[1]


def turned_box(
    size: Shape, cut: Shape, place: tuple[float, float], degrees: float
) -> tuple[float, float, float, float]:
    """What `cut_box` gives, made smaller and moved so that it lies in the picture when that turns round its middle."""
    left, top, right, bottom = cut_box(size, cut, place)
    if not degrees:
        return left, top, right, bottom
    across, down = abs(cos(radians(degrees))), abs(sin(radians(degrees)))
    width, height = right - left, bottom - top
    needs = width * across + height * down, width * down + height * across  # the upright box around the turned one
    room = [max(side - 2 * EDGE, side / 2) for side in size]
    scale = min(1.0, room[0] / needs[0], room[1] / needs[1])
    halves = [(scale * need + side - within) / 2 for need, side, within in zip(needs, size, room, strict=True)]
    middles = [
        min(max(middle, half), side - half)
        for middle, half, side in zip(((left + right) / 2, (top + bottom) / 2), halves, size, strict=True)
    ]
    width, height = scale * width / 2, scale * height / 2
    return middles[0] - width, middles[1] - height, middles[0] + width, middles[1] + height


def size_conditioning(size: Shape, cut: Shape, place: tuple[float, float], flip: bool) -> tuple[float, ...]:
    """What SDXL is told of a picture of `size` that is cut to `cut` (Podell et al. 2023, section 2.2).

    Original height and width; top and left of the cut in the picture resized to cover it; height and width of the cut.
    """
    scale = max(cut[0] / size[0], cut[1] / size[1])
    across = 1 - place[0] if flip else place[0]
    left, top = (round((side * scale - to) * at) for side, to, at in zip(size, cut, (across, place[1]), strict=True))
    return tuple(float(value) for value in (size[1], size[0], top, left, cut[1], cut[0]))


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
        """For the key of a cache: equal only for variants that show a picture in the same way."""
        facts = asdict(self)
        if not self.turn:
            del facts["turn"]  # the keys of what was kept before pictures could be turned
        return facts


def varies(concept: Concept) -> bool:
    """Whether the pictures of a concept are shown in several variants, mirrored ones aside."""
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


def apply_variant(picture: Image.Image, cut: Shape, variant: Variant) -> Tensor:
    """(3, height, width) float32 in -1..1: turned, cut and resized (Lanczos) to `cut`, then colours, then mirrored."""
    shown = _part(picture, cut, variant, cut, Image.Resampling.LANCZOS)
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


def _part(picture: Image.Image, cut: Shape, variant: Variant, size: Shape, how: Image.Resampling) -> Image.Image:
    """The part of a picture that a variant shows, in `size`."""
    left, top, right, bottom = box = turned_box(picture.size, cut, variant.place, variant.turn)
    if variant.turn:
        middle = (left + right) / 2, (top + bottom) / 2
        edge = floor(left), floor(top), ceil(right), ceil(bottom)  # resizing looks at all there is around its box
        picture = picture.rotate(variant.turn, Image.Resampling.BICUBIC, center=middle).crop(edge)
        box = left - edge[0], top - edge[1], right - edge[0], bottom - edge[1]
    return picture.resize(size, how, box=box)
