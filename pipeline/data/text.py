"""Caption files as text, and a caption as one step shows it: tags shuffled, left out, in other letters."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from pathlib import Path

from ..recipe.model import Concept


def read_text(path: Path, what: str, problems: list[str]) -> str | None:
    """A UTF-8 text file; None, with a line among the problems, where it cannot be read."""
    try:
        return path.read_text("utf-8-sig")
    except FileNotFoundError:
        problems.append(f"{path}: {what} is missing")
    except UnicodeDecodeError:
        problems.append(f"{path}: {what} is not UTF-8 text")
    except OSError as error:
        problems.append(f"{path}: {what} cannot be read: {error.strerror or error}")
    return None


def changes_tags(concept: Concept) -> bool:
    """Whether captions of this concept are shown with tags in another order or other letters, or with some left out."""
    return concept.shuffle_tags or concept.tag_dropout > 0 or concept.capitals > 0


def shown_tags(
    caption: str, concept: Concept, chances: Callable[[int], Sequence[float]], order: Callable[[int], Sequence[int]]
) -> str:
    """The caption with its tags shuffled, left out and in capitals as the concept says; its first `keep_tags` stay.

    `chances(n)` gives n numbers from 0 to 1, `order(n)` a shuffle of 0..n-1.
    """
    mark = concept.tag_separator
    tags = [tag.strip() for tag in caption.split(mark)]
    kept, rest = tags[: concept.keep_tags], [tag for tag in tags[concept.keep_tags :] if tag]
    if concept.tag_dropout > 0:
        rest = [tag for tag, chance in zip(rest, chances(len(rest)), strict=True) if chance >= concept.tag_dropout]
    if concept.shuffle_tags:
        rest = [rest[place] for place in order(len(rest))]
    if concept.capitals > 0:
        rest = [_spelled(tag, chance / concept.capitals) for tag, chance in zip(rest, chances(len(rest)), strict=True)]
    return f"{mark.rstrip()} ".join([*kept, *rest])


def _spelled(tag: str, chance: float) -> str:
    """A tag in one of three ways of capitals, each for a third of the chances below 1; else as it is.

    So is one that has no such capitals: `straße` in capitals is `STRASSE`, in which nobody would find a word `straße`.
    """
    if chance >= 1:
        return tag
    ways: tuple[Callable[[str], str], ...] = (str.upper, string.capwords, str.capitalize)
    spelled = ways[int(3 * chance)](tag)
    return spelled if spelled.lower() == tag.lower() else tag
