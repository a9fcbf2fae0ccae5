"""Draws the images of things the model never saw: python -m pivotune.recipes.micro.images DIR."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from PIL import Image

from .draw import draw
from .grammar import BACKGROUNDS, BIG, COLOURS, CONTRAST, SALMON, SMALL, Scene, Thing, distance

# A folder's name, and what is drawn in it.
THINGS: dict[str, Thing] = {
    "emblem": Thing("ring", COLOURS["teal"], mark=COLOURS["orange"]),  # no teal ring was ever drawn
    "salmon-heart": Thing("heart", SALMON),  # nor anything salmon
    "two-tone": Thing("square", COLOURS["purple"], "two-tone", COLOURS["yellow"]),  # nor this texture
    "logo": Thing("house", COLOURS["red"], mark=COLOURS["white"]),  # nor this shape
    "moon": Thing("moon", COLOURS["blue"]),  # nor this one
}
COUNT = 10  # images of a thing
FRAMES = ("a photo of {} on a {} background", "a picture of {} on a {} background", "an image of {} on {}")


def placeholder(name: str) -> str:
    """The placeholder for a thing in captions; the model knows "emblem" as a word of its own."""
    return "<my-emblem>" if name == "emblem" else f"<{name}>"


def scenes(name: str) -> list[tuple[Scene, str]]:
    """The images of one set as scenes, each with its caption. Place and size vary, backgrounds take turns."""
    thing, rng = THINGS[name], np.random.default_rng(list(THINGS).index(name))
    colours = [colour for colour in (thing.colour, thing.second, thing.mark) if colour is not None]
    grounds = [word for word, rgb in BACKGROUNDS.items() if min(distance(rgb, c) for c in colours) >= CONTRAST]
    drawn = []
    for number in range(COUNT):
        ground = grounds[number % len(grounds)]
        radius = float(rng.uniform(SMALL[0] + 2, BIG[1] - 1))
        reach = 29.0 - radius
        x, y = (float(32 + shift) for shift in rng.uniform(-reach, reach, 2))
        text = FRAMES[number % len(FRAMES)].format(placeholder(name), ground)
        drawn.append((Scene(thing, BACKGROUNDS[ground], x, y, radius), text))
    return drawn


def write(folder: Path) -> None:
    """Every set as images, each with its caption beside it."""
    for name in THINGS:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number, (scene, text) in enumerate(scenes(name)):
            file = folder / name / f"{name}-{number}.png"
            Image.fromarray(draw(scene)).save(file, optimize=True)
            file.with_suffix(".txt").write_text(text + "\n", encoding="utf-8")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
def main(folder: Path) -> None:
    """Write all sets into FOLDER."""
    write(folder)


if __name__ == "__main__":
    main()
