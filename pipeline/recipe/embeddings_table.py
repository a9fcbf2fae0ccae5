"""Reads a table of embeddings (CSV, TSV or JSON Lines) line by line; a malformed line does not stop the others."""

from __future__ import annotations

import csv
import json
import os
import stat
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import tomli

from pivotune import schemas

from ..text import count_of, did_you_mean, did_you_mean_path

ENDINGS = (".csv", ".tsv", ".jsonl")
LONGEST = 1_000_000  # bytes of a line
LARGEST = 1_000_000_000  # bytes of a file: ten million embeddings
OWN = ("name", "images")  # columns in addition to the keys of [[embedding]]
Row = tuple[int, dict[str, Any]]  # line and cells by column, without empty cells
Report = Callable[[int, str], None]


class Unusable(Exception):
    """The table cannot be read from this line on; `line` is 0 if it cannot be opened."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line


def embedding_rows(path: Path, ignore: frozenset[str], report: Report) -> Iterator[Row]:
    """Every line of a table with its values; malformed lines are passed to `report` and skipped.

    Raises Unusable if the file is not a table.
    """
    if path.suffix.lower() not in ENDINGS:
        raise Unusable(0, f"not a table of embeddings; supported: {', '.join(ENDINGS)}")
    known = [*OWN, *_types()]
    rows = _json_lines(path, report) if path.suffix.lower() == ".jsonl" else _csv(path, known, ignore, report)
    for line, cells in rows:
        unknown = [key for key in cells if key not in known and key not in ignore]
        if unknown:
            report(line, _unknown_column(unknown[0], known))
            continue
        yield line, {key: value for key, value in cells.items() if key not in ignore and value not in (None, "")}


def _csv(path: Path, known: list[str], ignore: frozenset[str], report: Report) -> Iterator[Row]:
    lines = _lines(path)
    _, first = next(lines, (1, ""))
    mark = next((mark for mark in (",", "\t", ";") if mark in first), ",")
    header = [name.strip() for name in next(csv.reader([first], delimiter=mark), [])]
    _check_header(header, known, ignore)
    position = [1]  # line that the reader has reached
    reader = csv.reader(_track_lines(lines, position), delimiter=mark, strict=True)
    begin = 2
    try:
        for cells in reader:
            line, begin = begin, position[0] + 1
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                report(line, f"{count_of(len(cells), 'cell')}, but the header has {count_of(len(header), 'column')}")
                continue
            yield line, {key: _value(key, cell.strip()) for key, cell in zip(header, cells, strict=True)}
    except csv.Error as error:
        raise Unusable(begin, f"not CSV: {error}") from error


def _track_lines(lines: Iterator[tuple[int, str]], position: list[int]) -> Iterator[str]:
    for number, text in lines:
        position[0] = number
        yield text


def _check_header(header: list[str], known: list[str], ignore: frozenset[str]) -> None:
    """Raises Unusable unless the header names known columns, each once."""
    if not any(header):
        raise Unusable(1, "the table is empty; its first line must be a header such as name,initial_text")
    for name in header:
        if name not in known and name not in ignore:
            raise Unusable(1, _unknown_column(name, known))
        if header.count(name) > 1:
            raise Unusable(1, f"duplicate column {name!r}")
    if not {"name", "placeholder"} & set(header):
        raise Unusable(1, "a column 'name' or 'placeholder' is required")


def _unknown_column(name: str, known: list[str]) -> str:
    return f"unknown column {name[:60]!r}{did_you_mean(name, known)} (columns to skip go into `ignore`)"


def _json_lines(path: Path, report: Report) -> Iterator[Row]:
    for number, text in _lines(path):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            report(number, f"not JSON: {error}")
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            report(number, 'expected an object such as {"name": "cat", "initial_text": "a cat"}')


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of every line, with its line break. Only regular files are opened; line length is limited."""
    try:
        with open(path, "rb", opener=_regular) as file:
            number = 0
            while raw := file.readline(LONGEST + 1):
                number += 1
                if len(raw) > LONGEST:
                    raise Unusable(number, f"line longer than {LONGEST:,} bytes; not a table of embeddings")
                yield number, _decode(raw, number)
    except OSError as error:
        hint = did_you_mean_path(path) if isinstance(error, FileNotFoundError) else ""
        raise Unusable(0, f"cannot be read: {error.strerror or error}{hint}") from error


def _regular(path: str, flags: int) -> int:
    found = os.stat(path)
    if stat.S_ISDIR(found.st_mode):
        raise OSError(0, "is a folder; use `folders` instead of `table`")
    if not stat.S_ISREG(found.st_mode):
        raise OSError(0, "not a regular file")
    if found.st_size > LARGEST:
        raise OSError(0, f"too large for a table of embeddings: {found.st_size / 1e9:.1f} GB")
    return os.open(path, flags)


def _decode(raw: bytes, number: int) -> str:
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        kind = "UTF-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else f"byte 0x{raw[error.start]:02x}"
        raise Unusable(number, f"not UTF-8 ({kind}); save the table as UTF-8") from error


@cache
def _types() -> dict[str, Any]:
    """The keys of [[embedding]] and their types in the schema; None for keys with several types."""
    about = schemas.schema("tables/embedding.json")["properties"]
    return {key: schemas.resolved(one, "tables/embedding.json")[0].get("type") for key, one in about.items()}


@cache
def _value(key: str, cell: str) -> Any:
    """The value of a cell: text columns verbatim, others parsed as TOML (2, 1e-3, true, { a = 1 })."""
    kind = _types().get(key, "string")
    if kind == "string" or not cell:
        return cell
    try:
        parsed = tomli.loads(f"value = {cell.lower() if kind == 'boolean' else cell}")
    except (tomli.TOMLDecodeError, RecursionError, ValueError):
        return cell
    return parsed["value"] if len(parsed) == 1 else cell
