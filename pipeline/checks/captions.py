"""Checks of the captions of each concept: how they are read from their files, and what they contain."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..data.captions import Captioned
from ..data.tags import weights_in, wildcards_in
from ..embeddings.placeholders import Replacer, spelling
from ..recipe.model import Concept, Recipe
from ..recipe.problem import Finding
from ..text import count_of


def caption_source_findings(recipe: Recipe, captioned: list[Captioned]) -> Iterator[Finding]:
    """Warnings about how captions are read: lines that are drawn, marks of other programs, keys without effect."""
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
        yield from _marks(index, concept, [text for _, texts in read.images for text in texts])
        yield from _ambiguous_placeholders(index, concept, recipe)


SEPARATOR = "|||"
MARKS: dict[str, tuple[str, Callable[[str], Sequence[str]]]] = {  # key: what it is for, and what there is in a caption
    "wildcards": ("a wildcard; set wildcards = true to draw one of its parts for each sample", wildcards_in),
    "keep_separator": (
        f"which separates tags that are kept; set keep_separator = '{SEPARATOR}'",
        lambda text: text.count(SEPARATOR) * [SEPARATOR],
    ),
    "strip_weights": ("a weight, which training does not have; set strip_weights = true to remove weights", weights_in),
}


def _marks(index: int, concept: Concept, captions: list[str]) -> Iterator[Finding]:
    """Warnings about marks in captions that another program replaces, where no key says that they are replaced."""
    for key, (what, find) in MARKS.items():
        found = [mark[0] for mark in map(find, captions) if mark] if not getattr(concept, key) else []
        if found:
            share = f"{len(found)} of {count_of(len(captions), 'caption')}"
            yield Finding(("concept", index, key), f"{share} contain {found[0][:60]!r}, {what}", "warning")


def _ambiguous_placeholders(index: int, concept: Concept, recipe: Recipe) -> Iterator[Finding]:
    """Errors about placeholders that contain what a key replaces in captions."""
    for embedding in recipe.embeddings:
        name = embedding.placeholder
        if concept.wildcards and set(name) & set("{|}"):
            yield Finding(("concept", index, "wildcards"), f"'{name}' contains a mark of wildcards; rename it")
        if concept.keep_separator is not None and concept.keep_separator in name:
            yield Finding(("concept", index, "keep_separator"), f"'{name}' contains it; rename it")


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
