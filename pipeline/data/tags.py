"""Augments a caption: draws its wildcards, and shuffles, drops and capitalises its tags."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence

from ..recipe.model import Concept

Chances = Callable[[int], Sequence[float]]  # n numbers from 0 to 1


def changes_tags(concept: Concept) -> bool:
    """Whether tags of this concept's captions are shuffled, dropped or capitalised."""
    return concept.shuffle_tags or concept.tag_dropout > 0 or concept.capitals > 0


def augment_tags(caption: str, concept: Concept, chances: Chances, order: Callable[[int], Sequence[int]]) -> str:
    """The caption with its tags shuffled, dropped and capitalised as in the concept; its first `keep_tags` stay.

    `order(n)` gives a shuffle of 0..n-1.
    """
    separator = concept.tag_separator
    tags = [tag.strip() for tag in caption.split(separator)]
    kept, rest = tags[: concept.keep_tags], [tag for tag in tags[concept.keep_tags :] if tag]
    if concept.tag_dropout > 0:
        rest = [tag for tag, chance in zip(rest, chances(len(rest)), strict=True) if chance >= concept.tag_dropout]
    if concept.shuffle_tags:
        rest = [rest[index] for index in order(len(rest))]
    if concept.capitals > 0:
        rest = [
            _capitalised(tag, chance / concept.capitals) for tag, chance in zip(rest, chances(len(rest)), strict=True)
        ]
    return join_tags([*kept, *rest], separator)


def join_tags(tags: Sequence[str], separator: str) -> str:
    """Tags as one text, with a space after each separator."""
    return f"{separator.rstrip()} ".join(tags)


def _capitalised(tag: str, chance: float) -> str:
    """A tag in one of three capitalisations, each for a third of the chances below 1; else unchanged.

    Also unchanged is a tag that capitals would spell differently: `straße` is `STRASSE` in capitals, and the
    placeholder `straße` would not be found in it.
    """
    if chance >= 1:
        return tag
    styles: tuple[Callable[[str], str], ...] = (str.upper, string.capwords, str.capitalize)
    changed = styles[int(3 * chance)](tag)
    return changed if changed.lower() == tag.lower() else tag
