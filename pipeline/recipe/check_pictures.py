"""Pictures and captions: are they there, and are they what they seem?"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ..data.captions import PICTURES, Captioned, collect_captions
from .model import Concept, Recipe
from .nearest import sibling
from .problem import Finding

MOST = 10  # problems of one kind that are named one by one
_BEGINNINGS = {
    ".png": (b"\x89PNG\r\n\x1a\n",),
    ".jpg": (b"\xff\xd8\xff",),
    ".jpeg": (b"\xff\xd8\xff",),
    ".bmp": (b"BM",),
    ".webp": (b"RIFF",),
}


def picture_findings(recipe: Recipe, captioned: list[Captioned]) -> Iterator[Finding]:
    """What is wrong with the concepts. `captioned` is filled with what could be read, one for each concept."""
    if not recipe.concepts and any(stage.kind == "train" for stage in recipe.stages):
        yield Finding(("concept",), "no pictures to train on; add a [[concept]] with images = a folder")
    for index, concept in enumerate(recipe.concepts):
        result = Captioned()
        captioned.append(result)
        yield from _concept(("concept", index), concept, result)


def _concept(place: tuple[str | int, ...], concept: Concept, result: Captioned) -> Iterator[Finding]:
    folder, where = concept.images, (*place, "images")
    if not folder.exists():
        yield Finding(where, f"{folder} does not exist{_sibling(folder)}")
        return
    if not folder.is_dir():
        yield Finding(where, f"{folder} is a file; give the folder that holds the pictures")
        return
    try:
        read = collect_captions(concept)
    except OSError as error:
        yield Finding(where, f"{folder} cannot be read: {error.strerror or error}")
        return
    result.pictures, result.problems = read.pictures, read.problems
    if not read.pictures and not read.problems:
        yield Finding(where, f"{folder} holds no picture ({_inside(folder)}); known: {', '.join(PICTURES)}")
    yield from _some([Finding(where, text) for text in _broken(read)])
    yield from _some([Finding((*place, "captions"), text) for text in read.problems])


def _broken(captioned: Captioned) -> Iterator[str]:
    """Pictures whose first bytes are not those of their kind: empty, cut off, or something else by another name."""
    for path, _ in captioned.pictures:
        try:
            with path.open("rb") as file:
                head = file.read(16)
        except OSError as error:
            yield f"{path}: cannot be read: {error.strerror or error}"
            continue
        if not head:
            yield f"{path}: the file is empty"
        elif not any(head.startswith(begin) for known in _BEGINNINGS.values() for begin in known):
            yield f"{path}: this is no picture, whatever its name says"


def _some(findings: list[Finding]) -> Iterator[Finding]:
    yield from findings[:MOST]
    if len(findings) > MOST:
        yield Finding(findings[0].path, f"and {len(findings) - MOST} more like these")


def _inside(folder: Path) -> str:
    """What the folder has instead of pictures, by ending."""
    entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    ends = Counter(Path(entry.name).suffix.lower() or "no ending" for entry in entries if entry.is_file())
    folders = sum(entry.is_dir() for entry in entries)
    parts = [f"{count} {end}" for end, count in ends.most_common(3)]
    if folders:
        parts.append(f"{folders} folder{'s' * (folders > 1)}")
    return ", ".join(parts) or "it is empty"


def _sibling(path: Path) -> str:
    guess = sibling(path)
    return f"; did you mean '{path.parent / guess}'?" if guess else ""
