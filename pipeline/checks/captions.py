"""Checks of the captions of each concept: how they are read from their files, and what they contain."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..data.captions import Captioned
from ..embeddings.placeholders import Replacer, spelling
from ..recipe.model import Recipe
from ..recipe.problem import Finding
from ..text import count_of


def caption_source_findings(recipe: Recipe, captioned: list[Captioned]) -> Iterator[Finding]:
    """Warnings about caption files whose lines are drawn, and about keys without effect."""
    distinct = {spelling(embedding.placeholder): embedding.placeholder for embedding in recipe.embeddings}
    replacer = Replacer(distinct.values())
    for index, (concept, read) in enumerate(zip(recipe.concepts, captioned, strict=True)):
        for key in ("caption_lines", "caption_extension"):
            if concept.captions != "beside" and getattr(concept, key) not in ("auto", None):
                yield Finding(("concept", index, key), 'no effect without captions = "beside"; remove it', "warning")
        if concept.captions == "beside" and not concept.prior:
            text = _drawn_lines(read, replacer)
            if text:
                yield Finding(("concept", index, "captions"), text, "warning")


def _drawn_lines(read: Captioned, replacer: Replacer) -> str:
    """About images with captions of which some lack the placeholder; empty if there are none."""
    lacking: list[tuple[Path, str]] = []
    for image, texts in read.images:
        found = [set(replacer.embeddings_in(text)) for text in texts]
        line = next((text for text, own in zip(texts, found, strict=True) if own != set().union(*found)), None)
        if line is not None:
            lacking.append((image, line))
    if not lacking:
        return ""
    image, line = lacking[0]
    several = count_of(sum(len(texts) > 1 for _, texts in read.images), "caption file")
    return (
        f"one line of a caption file is drawn for each sample, and in {len(lacking)} of {several} with several lines "
        f"the placeholder is not in all of them ({image.name}: {line[:60]!r}); add it to every line, or set "
        "caption_lines = 'join' or 'tags'"
    )
