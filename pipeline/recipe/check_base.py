"""Words that go on from a file: can it be read, does it hold the word, and as many vectors as are wanted?"""

from __future__ import annotations

from collections.abc import Iterator

from ...converters.errors import ConvertError
from ...converters.families import Family
from .model import Recipe
from .problem import Finding, Place


def base_findings(recipe: Recipe, family: Family | None) -> Iterator[Finding]:
    """What is wrong with the bases of the recipe's words."""
    for index, word in enumerate(recipe.words):
        place: Place = ("embedding", index)
        if word.base is None:
            for key in ("base_name", "resize"):
                if getattr(word, key) is not None:
                    yield Finding((*place, key), f"{key} says something of a base, and this word has none")
            continue
        from ..words.base import base_vectors, read_base  # all dialects of files: most recipes have no base

        try:
            embedding = read_base(word)
            keys = list(family.widths) if family else [key for key in embedding.vectors if not key.endswith("_out")]
            vectors = base_vectors(embedding, word, keys)
        except ConvertError as error:
            yield Finding((*place, "base"), str(error))
            continue
        for key, raw in vectors.items():
            have, count = raw.shape[0], word.tokens or raw.shape[0]
            way = "cut" if have > count else "pad"
            if have != count and word.resize != way:
                text = f"the base has {have} vectors for {key}; leave tokens out, or say resize = '{way}'"
                yield Finding((*place, "tokens"), text)
