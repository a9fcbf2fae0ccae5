"""Reads caption files and tables of captions, and augments the tags of a caption."""

from __future__ import annotations

import csv
import io
import json
import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ..files import read_regular
from ..recipe.model import Concept

LARGEST = 1 << 28  # bytes of a table of captions
LONGEST = 10_000  # characters of a caption: text encoders read a few hundred
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


def changes_tags(concept: Concept) -> bool:
    """Whether tags of this concept's captions are shuffled, dropped or capitalised."""
    return concept.shuffle_tags or concept.tag_dropout > 0 or concept.capitals > 0


def augment_tags(
    caption: str, concept: Concept, chances: Callable[[int], Sequence[float]], order: Callable[[int], Sequence[int]]
) -> str:
    """The caption with its tags shuffled, dropped and capitalised as in the concept; its first `keep_tags` stay.

    `chances(n)` gives n numbers from 0 to 1, `order(n)` a shuffle of 0..n-1.
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
    return f"{separator.rstrip()} ".join([*kept, *rest])


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


TABLES = (".jsonl", ".csv")
TEXTS = ("text", "caption")  # names of the column of captions
Row = tuple[int, str, list[str]]  # line, name of the image, its captions


def table_rows(path: Path, problems: list[str]) -> Iterator[Row]:
    """Every row with an image and its captions; errors in other rows are added to `problems`."""
    text = read_text(path, "the table of captions", problems)
    if text is not None:
        yield from (_csv if path.suffix.lower() == ".csv" else _json_lines)(path, text, problems)


def _json_lines(path: Path, text: str, problems: list[str]) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.append(f"{path}:{number}: not JSON: {error}")
            continue
        captions = _captions(row) if isinstance(row, dict) else []
        if captions and isinstance(row.get("file_name"), str):
            yield number, row["file_name"], captions
        else:
            problems.append(f'{path}:{number}: a line is {{"file_name": "a.png", "text": "a caption"}}')


def _captions(row: Mapping[object, object]) -> list[str]:
    """The captions of a row; none if there is no usable one."""
    value = next((row[key] for key in TEXTS if key in row), None)
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        return []
    return [str(text).strip() for text in texts]


def _csv(path: Path, text: str, problems: list[str]) -> Iterator[Row]:
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)  # in some countries it is a semicolon
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        names = reader.fieldnames or []
        column = next((name for name in TEXTS if name in names), None)
        if "file_name" not in names or column is None:
            problems.append(f"{path}:1: the first line names the columns: file_name and text")
            return
        for row in reader:
            name, caption = row["file_name"], row[column]
            if name and caption and caption.strip():
                yield reader.line_num, name, [caption.strip()]
            else:
                problems.append(f"{path}:{reader.line_num}: a line has a file_name and a {column}")
    except csv.Error as error:
        problems.append(f"{path}:{reader.line_num}: not CSV: {error}")
