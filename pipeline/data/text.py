"""Caption files as text, and a caption as one step shows it: tags shuffled and left out."""

from __future__ import annotations

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
    """Whether captions of this concept are shown with their tags in another order, or with some left out."""
    return concept.shuffle_tags or concept.tag_dropout > 0


def shown_tags(
    caption: str, concept: Concept, chances: Callable[[int], Sequence[float]], order: Callable[[int], Sequence[int]]
) -> str:
    """The caption with its tags shuffled and left out as the concept says; its first `keep_tags` stay as they are.

    `chances(n)` gives n numbers from 0 to 1, `order(n)` a shuffle of 0..n-1.
    """
    mark = concept.tag_separator
    tags = [tag.strip() for tag in caption.split(mark)]
    kept, rest = tags[: concept.keep_tags], [tag for tag in tags[concept.keep_tags :] if tag]
    if concept.tag_dropout > 0:
        rest = [tag for tag, chance in zip(rest, chances(len(rest)), strict=True) if chance >= concept.tag_dropout]
    if concept.shuffle_tags:
        rest = [rest[place] for place in order(len(rest))]
    return f"{mark.rstrip()} ".join([*kept, *rest])
