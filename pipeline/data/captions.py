"""Reads the captions of a concept. Opens no picture and needs no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import RecipeError
from ..recipe.model import Concept
from ..recipe.nearest import nearest

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass
class Captioned:
    """Pictures with their captions, and what is wrong: a picture without a caption is only among the problems."""

    pictures: list[tuple[Path, list[str]]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder (not of folders in it), in the order of their names. OSError when there is none."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_file()]
    return [folder / name for name in sorted(names) if name.lower().endswith(PICTURES)]


def read_captions(concept: Concept) -> list[tuple[Path, list[str]]]:
    """Every picture of a concept with its captions. RecipeError names every picture and line that has none."""
    try:
        captioned = collect_captions(concept)
    except OSError as error:
        raise RecipeError([f"{concept.images}: cannot be read: {error.strerror or error}"]) from error
    if captioned.problems:
        raise RecipeError(captioned.problems)
    return captioned.pictures


def collect_captions(concept: Concept) -> Captioned:
    """Captions as far as they can be read. OSError when the folder of pictures cannot."""
    paths = pictures_in(concept.images)
    if isinstance(concept.captions, tuple):
        return Captioned([(path, list(concept.captions)) for path in paths])
    if concept.captions == "beside":
        return _beside(paths)
    if concept.captions == "file-name":
        return Captioned([(path, [path.stem.strip()]) for path in paths])
    return _from_table(Path(concept.captions), concept.images, paths)


def _beside(pictures: list[Path]) -> Captioned:
    result = Captioned()
    for picture in pictures:
        path = picture.with_suffix(".txt")
        text = _text(path, f"the caption of {picture.name}", result)
        captions = [line.strip() for line in (text or "").splitlines() if line.strip()]
        if captions:
            result.pictures.append((picture, captions))
        elif text is not None:
            result.problems.append(f"{path}: the caption of {picture.name} is empty")
    return result


def _from_table(path: Path, folder: Path, pictures: list[Path]) -> Captioned:
    result = Captioned()
    names = {picture.name for picture in pictures}
    captions: dict[str, list[str]] = {}
    for number, name, caption in _rows(path, result):
        if name in names:
            captions.setdefault(name, []).append(caption)
        else:
            guess = nearest(name, names)
            hint = f"; did you mean '{guess}'?" if guess else ""
            result.problems.append(f"{path}:{number}: {folder} has no picture '{name}'{hint}")
    for picture in pictures:
        if picture.name in captions:
            result.pictures.append((picture, captions[picture.name]))
        elif captions:
            result.problems.append(f"{path}: no caption for {picture.name}; add a line for it")
    return result


def _rows(path: Path, result: Captioned) -> Iterator[tuple[int, str, str]]:
    lines = (_text(path, "the table of captions", result) or "").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            result.problems.append(f"{path}:{number}: not JSON: {error}")
            continue
        name, text = (row.get("file_name"), row.get("text")) if isinstance(row, dict) else (None, None)
        if isinstance(name, str) and isinstance(text, str) and text.strip():
            yield number, name, text.strip()
        else:
            result.problems.append(f'{path}:{number}: a line is {{"file_name": "a.png", "text": "a caption"}}')


def _text(path: Path, what: str, result: Captioned) -> str | None:
    try:
        return path.read_text("utf-8-sig")
    except FileNotFoundError:
        result.problems.append(f"{path}: {what} is missing")
    except UnicodeDecodeError:
        result.problems.append(f"{path}: {what} is not UTF-8 text")
    except OSError as error:
        result.problems.append(f"{path}: {what} cannot be read: {error.strerror or error}")
    return None
