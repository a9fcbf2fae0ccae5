"""Reads tables of captions: JSON Lines, JSON (also kohya's), CSV and Parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .caption_files import captions_of_row, parse_json, read_text

IMAGES = ("file_name", "image", "image_path")  # names of the column of images, and of that of captions
TEXTS = ("text", "caption", "tags")
Row = tuple[int, str, list[str]]  # line, name of the image, its captions


def table_rows(path: Path, separator: str, problems: list[str]) -> Iterator[Row]:
    """Every row with an image and its captions; errors in other rows are added to `problems`.

    `separator` is that of tags.
    """
    kind = path.suffix.lower()
    if kind == ".parquet":
        yield from _parquet(path, separator, problems)
        return
    text = read_text(path, "the table of captions", problems)
    if text is not None:
        yield from {".csv": _csv, ".json": _json}.get(kind, _json_lines)(path, text, separator, problems)


def _json_lines(path: Path, text: str, separator: str, problems: list[str]) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        row = parse_json(line, f"{path}:{number}", problems)
        if row is not None:
            yield from _row(row, number, separator, f"{path}:{number}: a line", problems)


def _json(path: Path, text: str, separator: str, problems: list[str]) -> Iterator[Row]:
    """A list of rows, or kohya's metadata: a row for each image, which may have no extension."""
    table = parse_json(text, str(path), problems)
    if table is None:
        return
    if not isinstance(table, (dict, list)):
        problems.append(f'{path}: a table of captions in JSON is {{"a.png": {{"caption": "a caption"}}}}, or a list')
        return
    rows = table if isinstance(table, list) else [_named(name, row) for name, row in table.items()]
    for number, row in enumerate(rows, 1):
        yield from _row(row, number, separator, f"{path}: item {number}", problems)


def _named(name: str, row: object) -> dict[str, object]:
    """An item of kohya's metadata as a row; an item that is a text is the caption."""
    return {**(row if isinstance(row, dict) else {"caption": row}), "file_name": name}


def _row(row: object, number: int, separator: str, what: str, problems: list[str]) -> Iterator[Row]:
    if isinstance(row, Mapping):
        name = next((row[key] for key in IMAGES if key in row), None)
        captions = captions_of_row(row, separator)
        if captions and isinstance(name, str) and name:
            yield number, name, captions
            return
    problems.append(f'{what} is {{"file_name": "a.png", "text": "a caption"}}')


def _csv(path: Path, text: str, separator: str, problems: list[str]) -> Iterator[Row]:
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)  # in some countries it is a semicolon
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        names = reader.fieldnames or []
        image = next((name for name in IMAGES if name in names), None)
        column = next((name for name in TEXTS if name in names), None)
        if image is None or column is None:
            problems.append(f"{path}:1: the first line names the columns: file_name and text")
            return
        for row in reader:
            name, captions = row[image], captions_of_row(row, separator)
            if name and captions:
                yield reader.line_num, name, captions
            else:
                problems.append(f"{path}:{reader.line_num}: a line has a {image} and a {column}")
    except csv.Error as error:
        problems.append(f"{path}:{reader.line_num}: not CSV: {error}")


def _parquet(path: Path, separator: str, problems: list[str]) -> Iterator[Row]:
    """The rows of a Parquet table; in a column of images with their bytes, the path counts."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        problems.append(f"{path}: reading Parquet needs pyarrow: pip install pyarrow, or save it as .jsonl or .csv")
        return
    try:
        with parquet.ParquetFile(path) as file:
            names = set(file.schema_arrow.names)
            image = next((name for name in IMAGES if name in names), None)
            wanted = [name for name in TEXTS if name in names]
            if image is None or not wanted:
                problems.append(f"{path}: needs columns file_name and text; it has {', '.join(sorted(names))}")
                return
            number = 0
            for batch in file.iter_batches(1000, columns=[_without_bytes(file, image), *wanted]):
                for row in batch.to_pylist():
                    number += 1
                    yield from _row({**row, image: _path_of(row[image])}, number, separator,
                                    f"{path}: row {number}", problems)  # fmt: skip
    except (OSError, ArrowException) as error:
        problems.append(f"{path}: cannot be read as Parquet: {str(error).splitlines()[0]}")


def _without_bytes(file: Any, column: str) -> str:
    """A column; of one with images in it (a struct of bytes and path), only the path."""
    return f"{column}.path" if hasattr(file.schema_arrow.field(column).type, "fields") else column


def _path_of(image: object) -> object:
    return image.get("path") if isinstance(image, dict) else image
