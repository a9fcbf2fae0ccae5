"""Crops of images: aspect ratio buckets, the crop box, and SDXL's size conditioning. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import cos, log, radians, sin

Shape = tuple[int, int]  # width and height in pixels
CENTRE = (0.5, 0.5)
LARGE = 256  # from this resolution on, buckets have steps of 64, as usual
EDGE = 2  # pixels at the edge of a rotated image that are cropped, as they are blended with nothing
LEAST_VISIBLE = 0.1  # images that would be cropped to less than this share are an error


@cache
def bucket_shapes(resolution: int, step: int) -> tuple[Shape, ...]:
    """All shapes whose sides are multiples of `step`, from half to twice `resolution`, of at most its square's area.

    The rule of kohya's scripts: for every width the greatest height. ValueError when the step is larger than the
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
    """The step of buckets if the recipe has none."""
    return 64 if resolution >= LARGE else 8


def nearest_shape(size: Shape, shapes: Sequence[Shape]) -> Shape:
    """The shape whose aspect ratio is nearest to that of an image of `size`; of equal ones the larger."""
    ratio = log(size[0] / size[1])
    return min(shapes, key=lambda shape: (round(abs(log(shape[0] / shape[1]) - ratio), 9), -shape[0] * shape[1], shape))


def crop_shape(size: Shape, resolution: int, step: int | None) -> Shape:
    """The crop size of an image: the nearest bucket, or the square without a step."""
    return nearest_shape(size, bucket_shapes(resolution, step)) if step else (resolution, resolution)


def visible_share(size: Shape, crop: Shape) -> float:
    """The share of an image that is visible in a crop of this shape."""
    ratios = size[0] * crop[1], crop[0] * size[1]
    return min(ratios) / max(ratios)


def crop_box(size: Shape, crop: Shape, position: tuple[float, float] = CENTRE) -> tuple[float, float, float, float]:
    """The part of an image of `size` with the aspect ratio of `crop`: left, top, right, bottom in pixels.

    `position` is from (0, 0), top left, to (1, 1), bottom right. The box is then resized to `crop`.
    """
    width, height = size[0], size[1]
    box = (
        (width, width * crop[1] / crop[0])
        if width * crop[1] <= height * crop[0]
        else (height * crop[0] / crop[1], height)
    )
    left, top = (width - box[0]) * position[0], (height - box[1]) * position[1]
    return left, top, left + box[0], top + box[1]


def rotated_box(
    size: Shape, crop: Shape, position: tuple[float, float], degrees: float
) -> tuple[float, float, float, float]:
    """The result of `crop_box`, shrunk and shifted to stay inside the image when rotated around its centre."""
    left, top, right, bottom = crop_box(size, crop, position)
    if not degrees:
        return left, top, right, bottom
    across, down = abs(cos(radians(degrees))), abs(sin(radians(degrees)))
    width, height = right - left, bottom - top
    needs = width * across + height * down, width * down + height * across  # the upright box around the rotated one
    room = [max(side - 2 * EDGE, side / 2) for side in size]
    scale = min(1.0, room[0] / needs[0], room[1] / needs[1])
    halves = [(scale * need + side - within) / 2 for need, side, within in zip(needs, size, room, strict=True)]
    middles = [
        min(max(middle, half), side - half)
        for middle, half, side in zip(((left + right) / 2, (top + bottom) / 2), halves, size, strict=True)
    ]
    width, height = scale * width / 2, scale * height / 2
    return middles[0] - width, middles[1] - height, middles[0] + width, middles[1] + height


def size_conditioning(size: Shape, crop: Shape, position: tuple[float, float], flip: bool) -> tuple[float, ...]:
    """SDXL's size conditioning of an image of `size` cropped to `crop` (Podell et al. 2023, section 2.2).

    Original height and width; top and left of the crop in the image resized to cover it; height and width of the crop.
    """
    scale = max(crop[0] / size[0], crop[1] / size[1])
    across = 1 - position[0] if flip else position[0]
    left, top = (
        round((side * scale - to) * at) for side, to, at in zip(size, crop, (across, position[1]), strict=True)
    )
    return tuple(float(value) for value in (size[1], size[0], top, left, crop[1], crop[0]))
