"""Tables of captions: JSON Lines (as the datasets library's metadata.jsonl) and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from .text import read_text

TABLES = (".jsonl", ".csv")
TEXTS = ("text", "caption")  # what the column of captions may be called
Row = tuple[int, str, list[str]]  # line, name of the picture, its captions


def table_rows(path: Path, problems: list[str]) -> Iterator[Row]:
    """Every row that names a picture and its captions; what is wrong with the others goes to the problems."""
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
    """The caption or captions of a row, none where it has no usable one."""
    value = next((row[key] for key in TEXTS if key in row), None)
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        return []
    return [str(text).strip() for text in texts]


def _csv(path: Path, text: str, problems: list[str]) -> Iterator[Row]:
    first = text.partition("\n")[0]
    mark = max(",;\t", key=first.count)  # programs of some countries write a semicolon
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=mark)
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
