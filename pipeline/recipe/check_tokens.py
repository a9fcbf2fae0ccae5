"""Words that stand behind the encoders' token limit wherever they stand: a run with them is refused."""

from __future__ import annotations

from collections.abc import Iterator

from ...converters.errors import ConvertError
from ..data.captions import Captioned
from ..errors import RecipeError, StageError
from ..words.placeholders import Replacer
from .model import Recipe, Word
from .problem import Finding

LEAST = 75  # tokens that any encoder of a family reads, its begin and end tokens not counted


def unseen_findings(recipe: Recipe, captioned: list[Captioned]) -> Iterator[Finding]:
    """An error for each trained word that no encoder's limit lets through in any caption that holds it.

    The model's tokenizers are read only where captions are long enough for that; where they are not on this machine,
    the run itself finds it.
    """
    captions = [text for concept in captioned for _, texts in concept.pictures for text in texts]
    if not _may_be_unseen(recipe, captions):
        return
    from ..models.light_tokenizers import light_tokenizers
    from .plan import make_plan

    try:
        plan = make_plan(recipe, light_tokenizers(recipe.model))
    except (StageError, ConvertError, RecipeError, ValueError):
        return  # said by another check, or by the run
    gone = set(plan.never_seen)
    limits = " and ".join(f"{limit} of {key}" for key, limit in plan.limits.items())
    for index, word in enumerate(recipe.words):
        if word.train and word.placeholder in gone:
            text = f"'{word.placeholder}' stands behind the token limit ({limits}) in every caption that holds it"
            yield Finding(("embedding", index, "placeholder"), f"{text}; put it further forward")


def _may_be_unseen(recipe: Recipe, captions: list[str]) -> bool:
    """Whether a trained word may be behind the limit everywhere, if each byte before it were a token."""
    sizes = {word.placeholder: _most(word) for word in recipe.words}
    replacer = Replacer(sizes)
    held, seen = set[str](), set[str]()
    for text in captions:
        end, total = 0, 0
        for found in replacer.find(text):
            total += 1 + len(text[end : found.start].encode("utf-8", "replace")) + sizes[found.word]
            end = found.end
            held.add(found.word)
            if total <= LEAST:
                seen.add(found.word)
    return any(word.train and word.placeholder in held - seen for word in recipe.words)


def _most(word: Word) -> int:
    """Vectors that a word has at most; of one that goes on from a file nobody knows."""
    if word.base is not None:
        return LEAST
    return word.tokens or max(1, len(word.initial_text.encode("utf-8", "replace")))
