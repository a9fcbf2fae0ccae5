"""Reads caption files: plain text and JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import read_regular
from ..recipe.model import Concept
from .tags import join_tags

LARGEST = 1 << 28  # bytes of a table of captions
LONGEST = 10_000  # characters of a caption: text encoders read a few hundred
_PARAGRAPHS = re.compile(r"\S\s*\n[^\S\n]*\n\s*\S")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def caption_problem(text: str) -> str | None:
    """Why a caption cannot be tokenized; None if it can."""
    if len(text) > LONGEST:
        return f"is longer than {LONGEST:,} characters ({len(text):,})"
    if "\0" in text:
        return "contains NUL characters, probably UTF-16; save it as UTF-8"
    return "contains half of a character (a lone surrogate)" if re.search("[\ud800-\udfff]", text) else None


def has_control_characters(name: str) -> bool:
    """Whether a file's name has control characters, or bytes that are not text."""
    return _CONTROL.search(name) is not None


def read_text(path: Path, what: str, problems: list[str]) -> str | None:
    """A UTF-8 text file; None, with a line added to `problems`, if it cannot be read."""
    try:
        content = read_regular(path, LARGEST)
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except FileNotFoundError:
        problems.append(f"{path}: {what} is missing")
    except UnicodeDecodeError:
        problems.append(f"{path}: {what} is not UTF-8 text")
    except ValueError:
        problems.append(f"{path}: {what} is larger than {LARGEST >> 20} MB")
    except OSError as error:
        problems.append(f"{path}: {what} cannot be read: {error.strerror or error}")
    return None


def caption_file(path: Path, concept: Concept, what: str, problems: list[str]) -> list[str]:
    """The captions of a file beside an image; none, with a line added to `problems`, if there is no usable one.

    `what` names the caption in messages.
    """
    text = read_text(path, what, problems)
    if text is None:
        return []
    if not text.strip():
        problems.append(f"{path}: {what} is empty")
        return []
    if path.suffix.lower() != ".json":
        return split_captions(text, concept.caption_lines, concept.tag_separator)
    known = len(problems)
    row = parse_json(text, str(path), problems)
    captions = captions_of_row(row, concept.tag_separator) if isinstance(row, dict) else []
    if not captions and len(problems) == known:
        problems.append(
            f'{path}: a caption in JSON is {{"caption": "a photo", "tags": ["red", "round"]}}, or one of them'
        )
    return captions


def split_captions(text: str, lines: str, separator: str) -> list[str]:
    """The captions in a text that is not blank, by `caption_lines`; `separator` is that of tags.

    `auto`: paragraphs (texts with a blank line between them) are one caption, other lines are a caption each.
    """
    found = [line.strip() for line in text.splitlines() if line.strip()]
    if lines == "tags":
        mark = separator.strip()
        tags = [line.removeprefix(mark).removesuffix(mark).strip() for line in found]
        return [join_tags([tag for tag in tags if tag], separator)]
    if lines == "join" or (lines == "auto" and _PARAGRAPHS.search(text)):
        return [" ".join(found)]
    return found


def captions_of_row(row: Mapping[Any, Any], separator: str) -> list[str]:
    """The captions of a row or of a JSON file, each followed by the row's tags; none if there is no usable one.

    `text` or `caption` is a caption or a list of them, `tags` a list of tags or their text, as in kohya's metadata.
    """
    value = next((row[key] for key in ("text", "caption") if row.get(key)), None)
    texts = [] if value is None else value if isinstance(value, list) else [value]
    tags = row.get("tags") or []
    tags = tags if isinstance(tags, list) else [tags]
    if not all(isinstance(text, str) for text in (*texts, *tags)) or not all(text.strip() for text in texts):
        return []
    added = [tag.strip() for tag in tags if tag.strip()]
    if not texts:
        return [join_tags(added, separator)] if added else []
    return [join_tags([text.strip(), *added], separator) for text in texts]


def parse_json(text: str, where: str, problems: list[str]) -> Any:
    """Parsed JSON; None, with a line added to `problems`, for text that is not JSON or is null."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        problems.append(f"{where}: not JSON: {error}")
        return None
    if found is None:
        problems.append(f"{where}: contains null instead of captions")
    return found
