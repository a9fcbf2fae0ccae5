"""How images are cropped: buckets by aspect ratio, the box that is cut out, SDXL's six sizes. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import cos, log, radians, sin

Shape = tuple[int, int]  # width and height in pixels
CENTRE = (0.5, 0.5)
LARGE = 256  # resolutions from here on have buckets in steps of 64, as real models need them
EDGE = 2  # pixels at the edge that a turned image does not show, as nothing is beside them to be mixed with
LEAST_SEEN = 0.1  # an image of which less than this would be seen is refused


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
    """The shape whose aspect ratio is nearest to that of an image of `size`; of equal ones the larger."""
    ratio = log(size[0] / size[1])
    return min(shapes, key=lambda shape: (round(abs(log(shape[0] / shape[1]) - ratio), 9), -shape[0] * shape[1], shape))


def cut_shape(size: Shape, resolution: int, step: int | None) -> Shape:
    """What an image is cut to: the nearest bucket, or without a step the square."""
    return nearest_shape(size, bucket_shapes(resolution, step)) if step else (resolution, resolution)


def visible_share(size: Shape, cut: Shape) -> float:
    """The share of an image that is seen when it is cut to this shape."""
    ratios = size[0] * cut[1], cut[0] * size[1]
    return min(ratios) / max(ratios)


def cut_box(size: Shape, cut: Shape, place: tuple[float, float] = CENTRE) -> tuple[float, float, float, float]:
    """The part of an image of `size` with the aspect ratio of `cut`: left, top, right, bottom in its own pixels.

    `place` from (0, 0), left and top, to (1, 1), right and bottom. What is left is then resized to `cut`.
    """
    width, height = size[0], size[1]
    box = (width, width * cut[1] / cut[0]) if width * cut[1] <= height * cut[0] else (height * cut[0] / cut[1], height)
    left, top = (width - box[0]) * place[0], (height - box[1]) * place[1]
    return left, top, left + box[0], top + box[1]


def turned_box(
    size: Shape, cut: Shape, place: tuple[float, float], degrees: float
) -> tuple[float, float, float, float]:
    """What `cut_box` gives, made smaller and moved so that it lies in the image when that turns round its middle."""
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
    """What SDXL is told of an image of `size` that is cut to `cut` (Podell et al. 2023, section 2.2).

    Original height and width; top and left of the cut in the image resized to cover it; height and width of the cut.
    """
    scale = max(cut[0] / size[0], cut[1] / size[1])
    across = 1 - place[0] if flip else place[0]
    left, top = (round((side * scale - to) * at) for side, to, at in zip(size, cut, (across, place[1]), strict=True))
    return tuple(float(value) for value in (size[1], size[0], top, left, cut[1], cut[0]))
