"""Augments a caption: draws its wildcards, and shuffles, drops and capitalises its tags."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence

from ..recipe.model import Concept

_WILDCARD = re.compile(r"\{([^{}]+)\}")
_WEIGHT = re.compile(r"(?<!\\)\(((?:[^()\\]|\\.)*?):\s*(?:\d*\.\d+|(?<!\d:)\d+)\s*\)")  # not (16:9)
_BRACES = (("{{", "\0("), ("}}", "\0)"))  # no caption contains NUL
Chances = Callable[[int], Sequence[float]]  # n numbers from 0 to 1


def changes_tags(concept: Concept) -> bool:
    """Whether tags of this concept's captions are shuffled, dropped, capitalised or in parts."""
    return concept.shuffle_tags or concept.tag_dropout > 0 or concept.capitals > 0 or concept.keep_separator is not None


def augment_tags(caption: str, concept: Concept, chances: Chances, order: Callable[[int], Sequence[int]]) -> str:
    """The caption with its tags shuffled, dropped and capitalised as in the concept, except those that are kept.

    `order(n)` gives a shuffle of 0..n-1.
    """
    kept, rest, last = split_tags(caption, concept)
    if concept.tag_dropout > 0:
        rest = [tag for tag, chance in zip(rest, chances(len(rest)), strict=True) if chance >= concept.tag_dropout]
    if concept.shuffle_tags:
        rest = [rest[index] for index in order(len(rest))]
    if concept.capitals > 0:
        rest = [
            _capitalised(tag, chance / concept.capitals) for tag, chance in zip(rest, chances(len(rest)), strict=True)
        ]
    return join_tags([*kept, *rest, *last], concept.tag_separator)


def split_tags(caption: str, concept: Concept) -> tuple[list[str], list[str], list[str]]:
    """The tags at the start that are kept, those that may be shuffled and dropped, and those at the end that are kept.

    The parts between `keep_separator`, else the first `keep_tags`.
    """
    if concept.keep_separator is not None and concept.keep_separator in caption:
        first, rest, *last = caption.split(concept.keep_separator)
        parts = (_tags(part, concept) for part in (first, rest, concept.tag_separator.join(last)))
        kept, rest_tags, last_tags = ([tag for tag in part if tag] for part in parts)
        return kept, rest_tags, last_tags
    tags = _tags(caption, concept)
    return tags[: concept.keep_tags], [tag for tag in tags[concept.keep_tags :] if tag], []


def _tags(text: str, concept: Concept) -> list[str]:
    return [tag.strip() for tag in text.split(concept.tag_separator)]


def draw_wildcards(caption: str, chances: Chances) -> str:
    """The caption with one part of each `{red|blue}`; `{{` and `}}` become braces."""
    parts = iter(chances(len(_WILDCARD.findall(_without_braces(caption)))))

    def one_of(match: re.Match[str]) -> str:
        options = match[1].split("|")
        return options[int(next(parts) * len(options))]

    return _replace_wildcards(caption, one_of)


def longest_form(caption: str, concept: Concept) -> str:
    """A caption for counting tokens: with the longest part of each wildcard and all tags, without separators."""
    if concept.wildcards:
        caption = _replace_wildcards(caption, lambda match: max(match[1].split("|"), key=len))
    if concept.keep_separator is not None and concept.keep_separator in caption:
        caption = join_tags([tag for part in split_tags(caption, concept) for tag in part], concept.tag_separator)
    return caption


def _replace_wildcards(caption: str, one_of: Callable[[re.Match[str]], str]) -> str:
    drawn = _WILDCARD.sub(one_of, _without_braces(caption))
    for written, mark in _BRACES:
        drawn = drawn.replace(mark, written[0])
    return drawn


def _without_braces(caption: str) -> str:
    """The caption with marks for `{{` and `}}`."""
    for written, mark in _BRACES:
        caption = caption.replace(written, mark)
    return caption


def wildcards_in(caption: str) -> list[str]:
    """The wildcards in a caption, as `{red|blue}`."""
    return [match[0] for match in _WILDCARD.finditer(_without_braces(caption)) if "|" in match[0]]


def weights_in(caption: str) -> list[str]:
    """The weights in a caption, as `(ring:1.2)`."""
    return [match[0] for match in _WEIGHT.finditer(caption)]


def strip_weights(caption: str) -> str:
    """The caption without weights, also without nested ones."""
    before = None
    while before != caption:
        before, caption = caption, _WEIGHT.sub(r"\1", caption)
    return caption


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
