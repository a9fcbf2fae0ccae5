"""What becomes of words in captions whose tags are left out, and in captions of what should stay as it is."""

from __future__ import annotations

from collections.abc import Iterator

from ...converters.families import Family
from ..data.captions import Captioned
from ..words.placeholders import Replacer, spelling
from .model import Concept, Recipe
from .problem import Finding


def shown_word_findings(recipe: Recipe, captioned: list[Captioned]) -> Iterator[Finding]:
    """Warnings about words that `tag_dropout` may leave out, and about words in captions of `prior` pictures."""
    distinct = {spelling(word.placeholder): word.placeholder for word in recipe.words}
    replacer = Replacer(distinct.values())
    for index, (concept, read) in enumerate(zip(recipe.concepts, captioned, strict=True)):
        captions = [text for _, texts in read.pictures for text in texts]
        lost = [text for text in captions if concept.tag_dropout > 0 and _may_go(text, concept, replacer)]
        if lost:
            where = f"in {len(lost)} of {len(captions)} captions a word may be left out, as in {lost[0][:60]!r}"
            text = f"{where}; put it among the first keep_tags = {concept.keep_tags} tags, or raise keep_tags"
            yield Finding(("concept", index, "tag_dropout"), text, "warning")
        held = sorted({word for text in captions for word in replacer.words_in(text)}) if concept.prior else []
        if held:
            words = ", ".join(held[:3])
            text = f"captions of prior pictures hold {words}: the word is pulled towards what it should leave"
            yield Finding(("concept", index, "prior"), text, "warning")


def capital_findings(recipe: Recipe, family: Family | None) -> Iterator[Finding]:
    """Warnings about capitals that no text encoder of the model would see."""
    if family is None or "t5" in family.widths:
        return
    for index, concept in enumerate(recipe.concepts):
        if concept.capitals > 0:
            text = f"has no effect: the text encoders of {family.title} are told all letters small; leave it out"
            yield Finding(("concept", index, "capitals"), text, "warning")


def _may_go(caption: str, concept: Concept, replacer: Replacer) -> bool:
    tags = caption.split(concept.tag_separator)
    return any(replacer.words_in(tag) for tag in tags[concept.keep_tags :])
