"""Says what is in a scene, in the frames that textual inversion uses, leaving things out now and then."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from .grammar import BACKGROUNDS, BIG, COLOURS, SMALL, Scene, Thing, name_of

SLOT = "slot"  # stands where a whole thing is said by vectors from the compound network
ANYTHING = "*"  # a thing of which nothing is said

FRAMES = (
    "a photo of {}", "a photo of {}", "a photo of {}", "a picture of {}", "an image of {}", "a drawing of {}",
    "a rendering of {}", "a depiction of {}", "the photo of {}", "a cropped photo of {}", "a close-up photo of {}",
    "a bright photo of {}", "a good photo of {}", "a nice picture of {}", "{}", "{}",
)  # fmt: skip
GROUNDS = (" on a {} background", " on a {} background", " on {}", ", {} background")
NOUNS = ("thing", "object", "shape")  # for a thing whose shape is not said
ADJECTIVES = ("nice", "cool", "clean", "weird", "dirty", "dark")  # they mean nothing here
OTHER_WORDS = (
    "the", "my", "one", "and", "with", "on", "in", "of", "emblem", "logo", "toy", "symbol", "sign", "style", "new",
    "this",
)  # fmt: skip

COMPOUND = 0.35  # share of captions that say the thing by the compound network
EMPTY = 0.1  # share without a word, for guidance


@dataclass(frozen=True)
class Caption:
    """A text, and which attributes of the scene it tells: of those the text encoder learns to speak."""

    text: str
    told: frozenset[str]  # of shape, texture, colour, second, mark, size, background


def vocabulary() -> list[str]:
    """Every word of captions and of likely initial texts."""
    texts = [*FRAMES, *GROUNDS, *NOUNS, *ADJECTIVES, *OTHER_WORDS, *COLOURS, *BACKGROUNDS]
    texts += ["small big large striped dotted plain dot", "circle square triangle star heart cross ring diamond"]
    text = " ".join([*texts, ANYTHING, SLOT]).replace("{}", " ").replace("-", " - ").replace(",", " , ")
    return sorted(set(text.split()))


def caption(scene: Scene, rng: np.random.Generator) -> Caption:
    """One of the many captions that fit the scene; a SLOT or two in it where the thing is not put in words."""
    if rng.random() < EMPTY:
        return Caption("", frozenset())
    words, told = _thing_said(scene.thing, rng)
    size = _size(scene.radius, rng)
    first = "a" if words[0] not in (SLOT, ANYTHING) else str(rng.choice(("a", "the", "my", "", "", "")))
    text = str(rng.choice(FRAMES)).format(" ".join(word for word in (first, size, *words) if word))
    ground = name_of(scene.background, BACKGROUNDS)
    if ground is not None and rng.random() < 0.75:
        text += str(rng.choice(GROUNDS)).format(ground)
        told |= {"background"}
    return Caption(article(text), frozenset(told | ({"size"} if size else set())))


def article(text: str) -> str:
    """The text with an instead of a where it is due."""
    return re.sub(r"\ba (?=[aeiou])", "an ", text)


def _thing_said(thing: Thing, rng: np.random.Generator) -> tuple[list[str], set[str]]:
    """The thing in words, as SLOTs or as ANYTHING, and what that tells."""
    chance = rng.random()
    if chance < COMPOUND:
        return [SLOT] if rng.random() < 0.7 else [SLOT, SLOT], {"shape", "texture", "colour", "second", "mark"}
    if chance < COMPOUND + 0.04:
        return [ANYTHING], set()
    colours = (thing.colour, thing.second, thing.mark)
    colour, second, mark = (None if c is None else name_of(c, COLOURS) for c in colours)
    kept = {
        "colour": colour is not None and rng.random() < 0.9,
        "second": colour is not None and second is not None and rng.random() < 0.85,
        "texture": rng.random() < (0.1 if thing.texture == "plain" else 0.9),
        "shape": rng.random() < 0.9,
        "mark": mark is not None and rng.random() < 0.9,
    }
    kept["second"] &= kept["colour"]
    words = [str(rng.choice(ADJECTIVES))] if rng.random() < 0.05 else []
    words += describe(thing, {part for part, keep in kept.items() if keep}, str(rng.choice(NOUNS)))
    return words, {part for part, keep in kept.items() if keep}


def describe(thing: Thing, told: set[str], noun: str = "thing") -> list[str]:
    """The words for these attributes of a thing, for instance striped red and white star."""
    words = [thing.texture] if "texture" in told else []
    if "colour" in told:
        words.append(str(name_of(thing.colour, COLOURS)))
    if "second" in told and thing.second is not None:
        words += ["and", str(name_of(thing.second, COLOURS))]
    words.append(thing.shape if "shape" in told else noun)
    if "mark" in told and thing.mark is not None:
        words += ["with", "a", str(name_of(thing.mark, COLOURS)), "dot"]
    return words


def _size(radius: float, rng: np.random.Generator) -> str:
    """A word for the size, or nothing."""
    if rng.random() < 0.4 or SMALL[1] < radius < BIG[0]:
        return ""
    return "small" if radius <= SMALL[1] else str(rng.choice(("big", "large")))
