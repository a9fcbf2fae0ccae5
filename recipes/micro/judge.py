"""Judges images without a network: finds the thing, draws what it should be, and compares.

All functions take images as (64, 64, 3) uint8. Distances are mean absolute differences from 0 to 255
within the thing's box: fresh drawings come below 5, another thing above 40; below HIT a viewer sees the same.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

from .draw import Image, draw
from .grammar import BACKGROUNDS, CANVAS, COLOURS, RGB, SHAPES, TEXTURES, Scene, Thing, distance

HIT = 25.0
NOTHING = 255.0  # the distance of an image with nothing in it
DIFFERS = 32  # levels, in any channel, that tell a thing's pixel from the background


@dataclass(frozen=True)
class Found:
    """Where an image differs from its background: a box in pixels, right and bottom excluded."""

    background: RGB
    left: int
    top: int
    right: int
    bottom: int


def background_of(image: Image) -> RGB:
    """The median colour of the border, three pixels wide."""
    inner = np.zeros((CANVAS, CANVAS), bool)
    inner[3:-3, 3:-3] = True
    red, green, blue = np.median(image[~inner], axis=0)
    return int(red), int(green), int(blue)


def find_object(image: Image) -> Found | None:
    """The box of what stands out from the background; specks of a pixel do not count."""
    background = background_of(image)
    mask = np.abs(image.astype(int) - background).max(2) > DIFFERS
    columns, rows = np.flatnonzero(mask.sum(0) >= 2), np.flatnonzero(mask.sum(1) >= 2)
    if len(columns) < 4 or len(rows) < 4:
        return None
    return Found(background, int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def distance_to_drawing(image: Image, scene: Scene) -> float:
    """How far what is in the image is from the scene's thing, wherever, how big and before what it stands."""
    return fit(image, scene.thing)[1]


def fit(image: Image, thing: Thing) -> tuple[Scene | None, float]:
    """Where the thing would have to stand to be what is in the image, and how far it is from it even so."""
    found = find_object(image)
    if found is None:
        return None, NOTHING
    best = _fitted(thing, found)
    error = _error(image, best, found)
    for reach, part in product((1.0, 0.5), ("radius", "x", "y")):  # a soft edge puts the first guess a pixel off
        for shift in (-reach, reach):
            other = replace(best, **{part: getattr(best, part) + shift})
            closer = _error(image, other, found)
            if closer < error:
                best, error = other, closer
    return best, error


def nearest_shape(image: Image, thing: Thing) -> str | None:
    """The shape whose drawing, in the thing's colours and texture, fits best."""
    found = find_object(image)
    if found is None:
        return None
    things = [replace(thing, shape=shape) for shape in SHAPES]
    likely = sorted(things, key=lambda other: _error(image, _fitted(other, found), found))[:3]
    return min(likely, key=lambda other: fit(image, other)[1]).shape


def nearest_texture(image: Image, thing: Thing, second: RGB) -> str | None:
    """The texture whose drawing, in the thing's shape and with this second colour, fits best."""
    found, (place, _) = find_object(image), fit(image, thing)
    if found is None or place is None:
        return None
    fits = {}
    for texture in TEXTURES:
        other = replace(thing, texture=texture, second=None if texture == "plain" else second)
        fits[texture] = _error(image, replace(place, thing=other), found)
    return min(fits, key=fits.__getitem__)


def background_word(image: Image) -> str:
    """The background's word nearest to the border's colour."""
    colour = background_of(image)
    return min(BACKGROUNDS, key=lambda word: distance(BACKGROUNDS[word], colour))


def colour_word(image: Image, thing: Thing) -> str | None:
    """The colour's word nearest to what stands where the thing's first colour belongs."""
    found = find_object(image)
    if found is None:
        return None
    drawing = draw(_fitted(thing, found))
    wanted = (drawing == np.array(thing.colour, np.uint8)).all(2)
    if not wanted.any():
        return None
    red, green, blue = np.median(image[wanted], axis=0)
    return min(COLOURS, key=lambda word: distance(COLOURS[word], (int(red), int(green), int(blue))))


def _fitted(thing: Thing, found: Found) -> Scene:
    """The thing put into the box that was found."""
    left, top, right, bottom = _reach(thing)
    scale = ((found.right - found.left) / (right - left) + (found.bottom - found.top) / (bottom - top)) / 2
    x = (found.left + found.right) / 2 - scale * (left + right) / 2
    y = (found.top + found.bottom) / 2 - scale * (top + bottom) / 2
    return Scene(thing, found.background, x, y, scale)


@cache
def _reach(thing: Thing) -> tuple[float, float, float, float]:
    """The thing's box from its middle, in units of its radius: left, top, right, bottom."""
    box = find_object(draw(Scene(thing, _far_from(thing), 32.0, 32.0, 20.0)))
    assert box is not None
    return (box.left - 32.0) / 20, (box.top - 32.0) / 20, (box.right - 32.0) / 20, (box.bottom - 32.0) / 20


def _far_from(thing: Thing) -> RGB:
    """A background on which all of the thing stands out."""
    colours = [colour for colour in (thing.colour, thing.second, thing.mark) if colour is not None]
    corners: list[RGB] = [(r, g, b) for r, g, b in product((0, 128, 255), repeat=3)]
    return max(corners, key=lambda corner: min(max(np.abs(np.subtract(corner, c))) for c in colours))


def _error(image: Image, scene: Scene, found: Found) -> float:
    """Mean absolute difference in the found box and two pixels around it."""
    rows = slice(max(0, found.top - 2), found.bottom + 2)
    columns = slice(max(0, found.left - 2), found.right + 2)
    difference: npt.NDArray[np.int16] = image[rows, columns].astype(np.int16) - draw(scene)[rows, columns]
    return float(np.abs(difference).mean())


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.option("--out", type=click.Path(path_type=Path), default=Path(__file__).parent / "judged.json")
@click.option("--work", type=click.Path(path_type=Path), default=Path("."), help="Where the drawings may be kept.")
@click.option("--images", default=500, show_default=True)
@click.option("--grid", type=click.Path(path_type=Path), help="Also write the first 96 images here.")
def main(model: Path, out: Path, work: Path, images: int, grid: Path | None) -> None:
    """Examine MODEL and write the shares as JSON."""
    from . import exam, sample

    result, drawn = exam.examine(model, work, images)
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if grid is not None:
        sample.grid(np.stack(drawn[:96]), 12).save(grid)
    click.echo(out.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
