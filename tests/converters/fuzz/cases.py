"""Case number n of a seed: always the same name and bytes, on every machine."""

import random
from dataclasses import dataclass, field
from functools import cache

from fuzz import chunks, headers, opcodes, plain, seeds

STEMS = (
    "x",
    "x",
    "x",
    "cat",
    "learned_embeds",
    "a b",
    "<cat>",
    "CON",
    "-x",
    "é",
    "🐈",
    "a\nb",
    "AND",
    "{stem}",
    "a.b.c",
    "%s",
)
ENDINGS = (".safetensors", ".safetensors", ".pt", ".bin", ".png", ".pti", "", ".PT")


SHARES = ("safetensors", "stream", "zip", "image"), (68, 14, 14, 4)  # images take long


@dataclass(frozen=True)
class Case:
    """A file to be read: `origin` says which seed it was made of."""

    index: int
    origin: str
    name: str
    data: bytes = field(repr=False)


def make(seed, index):
    """The case; `seed` and `index` are whole numbers."""
    rng = random.Random(seed * 1_000_003 + index)
    known = seeds.seeds()
    origin = rng.choice(_of_kind(rng.choices(*SHARES)[0]))
    pick = rng.random()
    if pick < 0.25:
        data = plain.mutate(rng, origin.data)
    elif pick < 0.28:
        data = plain.splice(rng, origin.data, rng.choice(known).data)
    else:
        data = _knowing(rng, origin)
        data = plain.mutate(rng, data, 1) if pick > 0.97 else data
    return Case(index, origin.name, rng.choice(STEMS) + rng.choice(ENDINGS), data)


@cache
def _of_kind(kind):
    return [seed for seed in seeds.seeds() if seed.kind == kind]


def _knowing(rng, origin):
    if origin.kind == "safetensors":
        return headers.mutate(rng, origin.data)
    if origin.kind == "image":
        return chunks.mutate(rng, origin.data)
    return opcodes.mutate(rng, origin.parts)
