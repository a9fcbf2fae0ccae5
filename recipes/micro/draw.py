"""Draws scenes with numpy: filled shapes, smoothed by sampling every pixel nine times."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from .grammar import CANVAS, RGB, Scene, Thing

Mask = npt.NDArray[np.bool_]
Grid = npt.NDArray[np.float32]
Image = npt.NDArray[np.uint8]

SAMPLES = 3  # a pixel and direction
REACH = 1.2  # no shape leaves the circle of so many radii
STRIPE, SECOND_STRIPE = 9.0, 5.0  # pixels; the first colour's are wider, so that one sees which colour is first
DOT_SPACING, DOT_RADIUS = 12.0, 4.0  # pixels


def _star(u: Grid, v: Grid) -> Mask:
    """Five points, from the angle to the nearest one."""
    angle = np.abs((np.arctan2(u, -v) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    rho = np.hypot(u, v)
    x, y = rho * np.cos(angle), rho * np.sin(angle)  # one edge runs from (1.08, 0) to the inner corner
    inner_x, inner_y = 0.5 * np.cos(np.pi / 5), 0.5 * np.sin(np.pi / 5)
    return np.asarray((x - 1.08) * inner_y - y * (inner_x - 1.08) <= 0)


def _heart(u: Grid, v: Grid) -> Mask:
    """The sextic heart curve, stretched to fill the circle of radius 1."""
    x, y = u * 1.18, 0.12 - v * 1.12
    return np.asarray((x * x + y * y - 1) ** 3 - x * x * y**3 < 0)


# Each takes coordinates in units of the radius, v downwards.
SHAPES: dict[str, Callable[[Grid, Grid], Mask]] = {
    "circle": lambda u, v: u * u + v * v < 0.9,
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) < 0.84,
    "triangle": lambda u, v: (v < 0.82) & (np.abs(u) < (v + 1.0) * 0.56),
    "star": _star,
    "heart": _heart,
    "cross": lambda u, v: (np.minimum(np.abs(u), np.abs(v)) < 0.32) & (np.maximum(np.abs(u), np.abs(v)) < 1.0),
    "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.77) < 0.23,
    "diamond": lambda u, v: np.abs(u) * 1.25 + np.abs(v) < 1.05,
    # Never drawn in training:
    "moon": lambda u, v: (np.hypot(u, v) < 1.0) & (np.hypot(u - 0.5, v + 0.1) > 0.75),
    "house": lambda u, v: (
        ((np.abs(u) < 0.7) & (np.abs(v - 0.4) < 0.55)) | ((v < -0.1) & (np.abs(u) < (v + 1.0) * 1.12))
    ),
}


def _striped(x: Grid, y: Grid) -> Mask:
    """Level stripes, the middle one of the first colour. Latents are 4 pixels wide: finer ones would blur."""
    return np.asarray((y + STRIPE / 2) % (STRIPE + SECOND_STRIPE) >= STRIPE)


def _dotted(x: Grid, y: Grid) -> Mask:
    """Dots in rows, one of them in the middle."""
    half = DOT_SPACING / 2
    return np.asarray(np.hypot((x + half) % DOT_SPACING - half, (y + half) % DOT_SPACING - half) < DOT_RADIUS)


# Where the second colour goes; coordinates in pixels from the middle of the thing.
TEXTURES: dict[str, Callable[[Grid, Grid], Mask]] = {
    "striped": _striped,
    "dotted": _dotted,
    # Never drawn in training:
    "two-tone": lambda x, y: x > 0,
    "checkered": lambda x, y: (np.floor(x / 8.0) + np.floor(y / 8.0)) % 2 == 0,
}

MARK_RADIUS = 0.33
MARK_DROP = {"triangle": 0.25}  # how far below the middle the mark sits, in units of the radius


def draw(scene: Scene) -> Image:
    """The scene as (64, 64, 3) uint8."""
    image = np.empty((CANVAS, CANVAS, 3), np.uint8)
    image[:] = scene.background
    rows, columns = _part(scene.y, scene.radius), _part(scene.x, scene.radius)
    x, y = np.meshgrid(_samples(columns) - np.float32(scene.x), _samples(rows) - np.float32(scene.y))
    fine = np.empty((*x.shape, 3), np.float32)
    fine[:] = scene.background
    for mask, colour in _layers(scene.thing, x, y, scene.radius):
        fine[mask] = colour
    height, width = rows.stop - rows.start, columns.stop - columns.start
    coarse = fine.reshape(height, SAMPLES, width, SAMPLES, 3).mean((1, 3))
    image[rows, columns] = np.round(coarse).astype(np.uint8)
    return image


def _part(middle: float, radius: float) -> slice:
    """The pixels, of a row or a column, that a thing may touch."""
    low, high = math.floor(middle - REACH * radius), math.ceil(middle + REACH * radius)
    return slice(max(0, min(low, CANVAS - 1)), max(1, min(high, CANVAS)))


def _samples(part: slice) -> npt.NDArray[np.float32]:
    """Where these pixels are looked at, in pixels."""
    line = np.arange(part.start * SAMPLES, part.stop * SAMPLES, dtype=np.float32)
    return (line + np.float32(0.5)) / np.float32(SAMPLES)


def _layers(thing: Thing, x: Grid, y: Grid, radius: float) -> list[tuple[Mask, RGB]]:
    """Masks and their colours, from the bottom up."""
    u, v = x / np.float32(radius), y / np.float32(radius)
    inside = SHAPES[thing.shape](u, v)
    layers = [(inside, thing.colour)]
    if thing.second is not None:
        layers.append((inside & TEXTURES[thing.texture](x, y), thing.second))
    if thing.mark is not None:
        layers.append((np.hypot(u, v - MARK_DROP.get(thing.shape, 0.0)) < MARK_RADIUS, thing.mark))
    return layers
