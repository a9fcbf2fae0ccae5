"""Reads a table of embeddings, CSV or JSON Lines, line by line: one that is wrong keeps no other from being read."""

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

from ..text import did_you_mean, did_you_mean_path

ENDINGS = (".csv", ".tsv", ".jsonl")
LONGEST = 1_000_000  # bytes of a line
LARGEST = 1_000_000_000  # bytes of a file: ten million embeddings
OWN = ("name", "images")  # columns beside the settings of an [[embedding]]
Row = tuple[int, dict[str, Any]]  # line, cells by column; empty cells are left out
Bad = Callable[[int, str], None]


class Unusable(Exception):
    """The table cannot be read on; `line` is 0 where it cannot be opened at all."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line


def embedding_rows(path: Path, ignore: frozenset[str], bad: Bad) -> Iterator[Row]:
    """Every line of a table with the values that its schema wants. `bad` is told the lines that are left out.

    Raises Unusable for a file that is no table.
    """
    if path.suffix.lower() not in ENDINGS:
        raise Unusable(0, f"a table of embeddings is a file that ends in {', '.join(ENDINGS)}")
    known = [*OWN, *_types()]
    rows = _json_lines(path, bad) if path.suffix.lower() == ".jsonl" else _csv(path, known, ignore, bad)
    for line, cells in rows:
        strange = [key for key in cells if key not in known and key not in ignore]
        if strange:
            bad(line, _strange(strange[0], known))
            continue
        yield line, {key: value for key, value in cells.items() if key not in ignore and value not in (None, "")}


def _csv(path: Path, known: list[str], ignore: frozenset[str], bad: Bad) -> Iterator[Row]:
    lines = _lines(path)
    _, first = next(lines, (1, ""))
    mark = next((mark for mark in (",", "\t", ";") if mark in first), ",")
    header = [name.strip() for name in next(csv.reader([first], delimiter=mark), [])]
    _check_header(header, known, ignore)
    at = [1]  # the line that the reader has come to
    reader = csv.reader(_told(lines, at), delimiter=mark, strict=True)
    begin = 2
    try:
        for cells in reader:
            line, begin = begin, at[0] + 1
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                bad(line, f"has {len(cells)} cells, the first line names {len(header)} columns")
                continue
            yield line, {key: _value(key, cell.strip()) for key, cell in zip(header, cells, strict=True)}
    except csv.Error as error:
        raise Unusable(begin, f"not CSV: {error}") from error


def _told(lines: Iterator[tuple[int, str]], at: list[int]) -> Iterator[str]:
    for number, text in lines:
        at[0] = number
        yield text


def _check_header(header: list[str], known: list[str], ignore: frozenset[str]) -> None:
    """Raises Unusable unless the first line names columns that are known, each once."""
    if not any(header):
        raise Unusable(1, "the table is empty; its first line names the columns: name,initial_text")
    for name in header:
        if name not in known and name not in ignore:
            raise Unusable(1, _strange(name, known))
        if header.count(name) > 1:
            raise Unusable(1, f"the column {name!r} stands here twice")
    if not {"name", "placeholder"} & set(header):
        raise Unusable(1, "a column 'name' or 'placeholder' is missing: what the embeddings are called")


def _strange(name: str, known: list[str]) -> str:
    return f"unknown column {name[:60]!r}{did_you_mean(name, known)}; `ignore` names other columns"


def _json_lines(path: Path, bad: Bad) -> Iterator[Row]:
    for number, text in _lines(path):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            bad(number, f"not JSON: {error}")
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            bad(number, 'a line is an object such as {"name": "cat", "initial_text": "a cat"}')


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of every line, its end with it. Only a regular file is opened; a line has a longest length."""
    try:
        with open(path, "rb", opener=_regular) as file:
            number = 0
            while raw := file.readline(LONGEST + 1):
                number += 1
                if len(raw) > LONGEST:
                    raise Unusable(number, f"the line is longer than {LONGEST:,} bytes; is this a table of embeddings?")
                yield number, _decoded(raw, number)
    except OSError as error:
        hint = did_you_mean_path(path) if isinstance(error, FileNotFoundError) else ""
        raise Unusable(0, f"cannot be read: {error.strerror or error}{hint}") from error


def _regular(path: str, flags: int) -> int:
    found = os.stat(path)
    if stat.S_ISDIR(found.st_mode):
        raise OSError(0, "it is a folder; `folders` takes a folder")
    if not stat.S_ISREG(found.st_mode):
        raise OSError(0, "not a regular file")
    if found.st_size > LARGEST:
        raise OSError(0, f"{found.st_size / 1e9:.1f} GB is too large for a table of embeddings")
    return os.open(path, flags)


def _decoded(raw: bytes, number: int) -> str:
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        kind = "UTF-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else f"byte 0x{raw[error.start]:02x}"
        raise Unusable(number, f"not UTF-8 text ({kind}); save the table as UTF-8") from error


@cache
def _types() -> dict[str, Any]:
    """The settings of an [[embedding]] with the type that the schema gives them, None where there are several."""
    about = schemas.schema("tables/embedding.json")["properties"]
    return {key: schemas.resolved(one, "tables/embedding.json")[0].get("type") for key, one in about.items()}


@cache
def _value(key: str, cell: str) -> Any:
    """A cell as what its column holds: texts as they are, all else as TOML writes it (2, 1e-3, true, { a = 1 })."""
    kind = _types().get(key, "string")
    if kind == "string" or not cell:
        return cell
    try:
        parsed = tomli.loads(f"value = {cell.lower() if kind == 'boolean' else cell}")
    except (tomli.TOMLDecodeError, RecursionError, ValueError):
        return cell
    return parsed["value"] if len(parsed) == 1 else cell
