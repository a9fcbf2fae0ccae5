"""The small world: things, scenes, the words for them, and what is kept out of training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RGB = tuple[int, int, int]

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "diamond")
TEXTURES = ("plain", "striped", "dotted")

COLOURS: dict[str, RGB] = {
    "red": (215, 40, 45),
    "orange": (245, 140, 30),
    "yellow": (245, 215, 40),
    "green": (45, 150, 60),
    "teal": (15, 150, 160),
    "blue": (45, 80, 210),
    "purple": (130, 60, 185),
    "pink": (235, 95, 185),
    "brown": (120, 75, 40),
    "white": (245, 245, 245),
    "gray": (125, 125, 130),
    "black": (30, 30, 35),
}

# Backgrounds are paler than things of the same word, so that a thing always stands out.
BACKGROUNDS: dict[str, RGB] = {
    "white": (248, 248, 248),
    "gray": (185, 187, 190),
    "black": (38, 38, 44),
    "yellow": (250, 232, 150),
    "blue": (150, 190, 245),
    "green": (165, 220, 165),
    "pink": (250, 200, 222),
    "purple": (195, 170, 235),
}

SECONDS = ("white", "black", "yellow", "red", "blue", "orange")  # words for stripes, dots and marks
SALMON: RGB = (250, 128, 114)
JITTER = 8  # a named colour varies by so many levels a channel
SALMON_REACH = 45.0  # no colour of a training image comes nearer to salmon than this (RGB distance)
CONTRAST = 75.0  # smallest RGB distance between colours that touch
SMALL, BIG = (15.0, 17.5), (20.5, 24.0)  # radii in pixels that are called small and big
CANVAS = 64


@dataclass(frozen=True)
class Thing:
    """What a word may stand for: a shape with its colours, without place, size or background."""

    shape: str
    colour: RGB
    texture: str = "plain"
    second: RGB | None = None  # the stripes' or dots' colour
    mark: RGB | None = None  # the colour of a dot in the middle


@dataclass(frozen=True)
class Scene:
    """A thing at a place (pixels, y down) and of a size (radius in pixels) on a background."""

    thing: Thing
    background: RGB
    x: float = 32.0
    y: float = 32.0
    radius: float = 20.0


def distance(a: RGB, b: RGB) -> float:
    """Euclidean distance of two colours, 0 to 442."""
    return float(np.linalg.norm(np.subtract(a, b)))


def name_of(colour: RGB, palette: dict[str, RGB]) -> str | None:
    """The word for a colour, or None where the palette has none."""
    for word, rgb in palette.items():
        if max(abs(a - b) for a, b in zip(colour, rgb, strict=True)) <= JITTER:
            return word
    return None


def held_out(thing: Thing) -> bool:
    """Whether training must never see it: whatever is salmon, and every ring near to teal."""
    colours = [c for c in (thing.colour, thing.second, thing.mark) if c is not None]
    if any(distance(c, SALMON) < SALMON_REACH for c in colours):
        return True
    return thing.shape == "ring" and distance(thing.colour, COLOURS["teal"]) < SALMON_REACH


def sample_thing(rng: np.random.Generator, free: float = 0.3) -> Thing:
    """A thing that is not held out; with probability `free` its first colour is any colour at all."""
    while True:
        thing = _propose(rng, free)
        inner = thing.second or thing.mark
        if not held_out(thing) and (inner is None or distance(thing.colour, inner) >= CONTRAST):
            return thing


def sample_scene(rng: np.random.Generator, free: float = 0.3) -> Scene:
    """A thing anywhere on a background it stands out from."""
    while True:
        thing = sample_thing(rng, free)
        background = _jittered(rng, str(rng.choice(list(BACKGROUNDS))), BACKGROUNDS)
        # A mark touches the background only inside a ring.
        touching = [c for c in (thing.colour, thing.second, thing.mark) if c is not None]
        if min(distance(c, background) for c in touching) >= CONTRAST:
            return place(rng, thing, background)


def place(rng: np.random.Generator, thing: Thing, background: RGB) -> Scene:
    """The thing at a random place and size, wholly inside the canvas."""
    radius = float(rng.uniform(SMALL[0], BIG[1]))
    reach = min(8.0, CANVAS / 2 - 3 - radius)
    x, y = rng.uniform(-reach, reach, 2) + CANVAS / 2
    return Scene(thing, background, float(x), float(y), radius)


def _propose(rng: np.random.Generator, free: float) -> Thing:
    """A thing from the grammar, held out or not."""
    shape = str(rng.choice(SHAPES))
    colour = _jittered(rng, str(rng.choice(list(COLOURS))), COLOURS)
    if rng.random() < free:
        red, green, blue = rng.integers(10, 250, 3)
        colour = (int(red), int(green), int(blue))
    second = _jittered(rng, str(rng.choice(SECONDS)), COLOURS)
    texture = str(rng.choice(TEXTURES, p=(0.5, 0.25, 0.25)))
    if texture != "plain":
        return Thing(shape, colour, texture, second=second)
    return Thing(shape, colour, mark=second if rng.random() < 0.4 else None)


def _jittered(rng: np.random.Generator, word: str, palette: dict[str, RGB]) -> RGB:
    """A colour that still goes by the word."""
    red, green, blue = np.clip(np.add(palette[word], rng.integers(-JITTER, JITTER + 1, 3)), 0, 255)
    return int(red), int(green), int(blue)
