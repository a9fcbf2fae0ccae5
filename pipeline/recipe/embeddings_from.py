"""`[[embeddings_from]]`: embeddings from a table or from folders, each as if it had its own [[embedding]]."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import tomli

from pivotune import schemas

from ..files import is_hidden
from ..text import count_of, did_you_mean_path
from .backslashes import advice_for, changed_paths
from .document import Document
from .embeddings_table import Unusable, embedding_rows
from .explain import explain
from .intervals import parse_interval
from .problem import KeyPath, Problem, key_text

TEXTS = ("placeholder", "initial_text")  # they differ between embeddings


class Entry(NamedTuple):
    """One embedding: its name, its own keys, their file and line, and its image folder."""

    name: str
    own: dict[str, Any]
    file: str
    line: int
    images: Path | None


@dataclass
class Problems:
    """Problems found, up to a maximum number; the rest is counted."""

    limit: int
    found: list[Problem]
    more: int = 0
    checked: dict[str, tuple[tuple[KeyPath, str], ...]] = field(default_factory=dict)  # problems by settings

    @property
    def count(self) -> int:
        """Number of problems, listed or not."""
        return len(self.found) + self.more

    def add(self, file: Path | str, line: int, path: KeyPath, text: str) -> None:
        if len(self.found) < self.limit:
            self.found.append(Problem("error", line, key_text(path), text, str(file)))
        else:
            self.more += 1


def check_embedding(embedding: Mapping[str, Any], entry: Entry, problems: Problems) -> None:
    """Check an embedding against the schema of [[embedding]], except for what the check of the recipe covers."""
    settings = {key: value for key, value in entry.own.items() if key not in TEXTS}
    if repr(settings) not in problems.checked:  # thousands of rows have few different settings
        problems.checked[repr(settings)] = tuple(_violations(settings))
    wrong = problems.checked[repr(settings)]
    texts = {key: embedding[key] for key in TEXTS if key in embedding}
    if not all(_is_text(key, value) for key, value in texts.items()):
        wrong = (*wrong, *_violations(texts))
    for path, text in wrong:
        problems.add(entry.file, entry.line, path, text)


def _violations(table: dict[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    for key, value in table.items():
        if any(isinstance(one, float) and not math.isfinite(one) for one in _leaves(value)):
            yield (key,), "not a finite number"
            return
    found = [pair for error in schemas.violations(table, "tables/embedding.json") for pair in explain(error)]
    yield from found
    stop = table.get("stop_after")
    if not found and isinstance(stop, str):
        try:
            parse_interval(stop, own=True)
        except ValueError as error:
            yield ("stop_after",), str(error)


def _leaves(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else [value]


def _is_text(key: str, value: Any) -> bool:
    """A fast check that nearly every text passes; the others are checked again against the schema for the message."""
    return isinstance(value, str) and bool(value) and (key != "placeholder" or _placeholder().search(value) is not None)


@cache
def _placeholder() -> re.Pattern[str]:
    pattern = schemas.schema("tables/embedding.json")["properties"]["placeholder"]["pattern"]
    return re.compile(re.sub(r"\$$", r"\\Z", pattern))


SETTINGS = "embedding.toml"  # in an embedding's folder


def with_many_embeddings(document: Document, limit: int) -> tuple[Document, list[Problem]]:
    """The document with an [[embedding]] (and a [[concept]]) for every embedding of its sources, and their problems;
    embeddings with problems are left out.

    At most `limit` problems are listed, the rest is counted. The document must fit its schema.
    """
    sources = document.data.get("embeddings_from", [])
    if not sources:
        return document, []
    data = {key: value for key, value in document.data.items() if key != "embeddings_from"}
    embeddings, concepts = list(data.get("embedding", [])), list(data.get("concept", []))
    origins, problems = dict(document.origins), Problems(limit, [])
    for index, source in enumerate(sources):
        where: KeyPath = ("embeddings_from", index)
        wrong = _source_problem(source)
        if wrong:
            problems.found.append(document.problem((*where, *wrong[0]), wrong[1]))
            continue
        before = len(embeddings) + problems.count
        for entry in _entries(source, document.path.parent, problems):
            embedding, known = _embedding(entry, entry.own, source.get("embedding", {})), problems.count
            check_embedding(embedding, entry, problems)
            if problems.count > known:
                continue
            origins["embedding", len(embeddings)] = (entry.file, entry.line)
            embeddings.append(embedding)
            if entry.images is not None:
                origins["concept", len(concepts)] = (entry.file, entry.line)
                concepts.append(_concept(entry, source.get("concept", {}), embedding["placeholder"]))
        if before == len(embeddings) + problems.count:
            problems.found.append(document.problem(where, "no embeddings found"))
    if problems.more:
        problems.found.append(Problem("error", 0, "", f"and {count_of(problems.more, 'more problem')} of this kind"))
    whole = replace(document, data={**data, "embedding": embeddings, "concept": concepts}, origins=origins)
    return whole, problems.found


def _source_problem(source: Mapping[str, Any]) -> tuple[KeyPath, str] | None:
    """A contradiction in one [[embeddings_from]], as key path and message."""
    if ("table" in source) == ("folders" in source):
        return (), "give either `table` or `folders`"
    if "images" in source.get("concept", {}):
        return ("concept", "images"), "each embedding has its own images; remove this key"
    if "folders" in source and source.get("ignore"):
        return ("ignore",), "folders have no columns; remove this key"
    return None


def _entries(source: Mapping[str, Any], base: Path, problems: Problems) -> Iterator[Entry]:
    if "folders" in source:
        yield from _folder_entries(Path(os.path.abspath(base / Path(source["folders"]).expanduser())), problems)
        return
    path = Path(os.path.abspath(base / Path(source["table"]).expanduser()))
    try:
        for line, row in embedding_rows(
            path, frozenset(source.get("ignore", ())), lambda line, text: problems.add(path, line, (), text)
        ):
            name, images = row.pop("name", None), row.pop("images", None)
            name = row.get("placeholder") if name is None else name
            if not isinstance(name, str) or not (images is None or isinstance(images, str)):
                problems.add(
                    path, line, (), "'name' (or 'placeholder') must be a string, and so must 'images' if present"
                )
                continue
            yield Entry(name, row, str(path), line, path.parent / images if images else None)
    except Unusable as error:
        problems.add(path, error.line, (), str(error))


def _folder_entries(folder: Path, problems: Problems) -> Iterator[Entry]:
    """An embedding for each folder in `folder`, sorted by name; hidden folders and those of the system are skipped."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if not is_hidden(entry.name) and entry.is_dir())
    except OSError as error:
        hint = did_you_mean_path(folder) if isinstance(error, FileNotFoundError) else ""
        problems.add(folder, 0, (), f"the folder cannot be read: {error.strerror or error}{hint}")
        return
    for name in names:
        settings, own = folder / name / SETTINGS, {}
        try:
            with settings.open("rb") as file:
                own = tomli.load(file)
        except FileNotFoundError:
            yield Entry(name, {}, str(folder / name), 0, folder / name)
            continue
        except (OSError, ValueError, RecursionError) as error:
            hint = advice_for(error) if isinstance(error, tomli.TOMLDecodeError) else ""
            problems.add(settings, getattr(error, "lineno", 0), (), f"cannot be read as TOML: {error}{hint}")
        for key_path, value in changed_paths(own):
            problems.add(settings, 0, key_path, f"read as {value!r}: write a path with backslashes in single quotes")
        yield Entry(name, own, str(settings), 1, folder / name)


def _embedding(entry: Entry, own: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """One [[embedding]]: its own keys, and the defaults with its name filled in."""
    defaulted = {key: _fill_names(value, entry.name) if key in TEXTS else value for key, value in defaults.items()}
    return {"placeholder": entry.name, **defaulted, **own}


def _concept(entry: Entry, defaults: Mapping[str, Any], placeholder: Any) -> dict[str, Any]:
    """One [[concept]]: the embedding's images, with the shared settings."""
    defaulted = {key: _fill_names(value, entry.name, str(placeholder)) for key, value in defaults.items()}
    return {**defaulted, "images": str(entry.images)}


def _fill_names(value: Any, name: str, placeholder: str = "{placeholder}") -> Any:
    """A text or a list of texts with {name}, {text} and {placeholder} replaced."""
    if isinstance(value, list):
        return [_fill_names(one, name, placeholder) for one in value]
    if not isinstance(value, str) or "{" not in value:
        return value
    values = {"name": name, "text": re.sub("[_-]+", " ", name).strip(), "placeholder": placeholder}
    return re.sub(r"\{(name|text|placeholder)\}", lambda match: values[match[1]], value)
