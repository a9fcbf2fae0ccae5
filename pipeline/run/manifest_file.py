"""Reads the manifest of a run's folder, which may be another's, and holds it to its schema."""

from __future__ import annotations

import os
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

from ... import schemas
from ..errors import StageError
from .received import bounded_json, is_inside, plain_bytes

NAME = "manifest.json"
_PATHS = ("artefacts", "pictures")  # lists of what has a path in the run's folder


def read_manifest(folder: Path) -> dict[str, Any]:
    """The run's manifest, which fits its schema and names only files inside. StageError where there is none."""
    path = folder / NAME
    try:
        data = plain_bytes(path)
        manifest = bounded_json(data)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StageError(f"{folder}: no manifest.json, so this is not the folder of a run") from error
    except (OSError, ValueError) as error:  # bad JSON, bad UTF-8
        raise StageError(f"{path}: not a manifest ({error})") from error
    wrong = _verdict(data)
    if wrong:
        raise StageError(f"{path}: not a manifest of this version of Pivotune ({wrong})")
    return manifest


def why_unread(folder: Path) -> str:
    """What is wrong with the manifest that a folder has, in brackets; empty where there is none, or nothing wrong."""
    if not os.path.lexists(folder / NAME):
        return ""
    try:
        read_manifest(folder)
    except StageError as error:
        return f" ({error})"
    return ""


def left_behind(folder: Path) -> dict[str, Any] | None:
    """The manifest in a folder, or None where there is none that can be read."""
    try:
        return read_manifest(folder)
    except StageError:
        return None


@lru_cache(maxsize=2)
def _verdict(data: bytes) -> str:
    """What keeps these bytes from being a manifest. A run reads its own several times, and a schema of ten thousand
    embeddings takes seconds to apply."""
    return _wrong(bounded_json(data))


def _wrong(manifest: Any) -> str:
    """What keeps a JSON value from being a manifest: the first place and why; empty where it is one."""
    if not isinstance(manifest, dict):
        return "expected an object"
    recipe = manifest.get("recipe")
    found = chain(
        ((one, ()) for one in schemas.violations(manifest, NAME)),
        # What an old recipe lacks is none of a reader's business: a run that goes on or is replayed looks by itself.
        ((one, ("recipe",)) for one in schemas.violations(recipe, "recipe.json") if one.validator != "required"),
    )
    for one, start in found:
        place = ".".join(map(str, (*start, *one.absolute_path)))
        return f"{place or 'at its top'}: {one.message if len(one.message) < 120 else one.validator}"
    for name in _PATHS:
        for number, row in enumerate(manifest[name]):
            if not is_inside(row["path"]):
                return f"{name}.{number}.path: no path inside the run's folder"
    return ""
