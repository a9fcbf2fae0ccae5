"""Every folder that a run writes to is tried with a save before anything is spent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ...converters import safetensors_file
from ...converters.errors import ConvertError
from ...converters.tensor import RawTensor
from ..data.cache import cache_folder
from ..data.files import files_in
from ..recipe.model import Recipe

PROBE = ".probe"
_ONE = {"probe": RawTensor("F32", (1,), b"\0\0\x80\x3f")}


@dataclass(frozen=True)
class Place:
    """A folder and what is written there. A run does without a place that is not `needed`."""

    what: str
    folder: Path
    needed: bool = True


def places_of(recipe: Recipe, out: Path | None) -> Iterator[Place]:
    """The run's folder with those that are in it already, the cache of encoded pictures, folders of class pictures."""
    folder = (out or Path("runs") / recipe.name).absolute()
    yield Place("run", folder if out is not None else folder.parent)
    if out is not None and folder.is_dir():
        for inside in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
            yield Place(inside.name, inside)
    cache = cache_folder(recipe.data.cache_latents, None)
    if cache is not None:
        yield Place("encoded pictures", cache.absolute(), needed=False)
    for concept in recipe.concepts:
        if concept.generate is not None and _lacking(concept.images, concept.generate["count"], concept.recursive):
            yield Place("class pictures", concept.images)


def try_save(place: Place) -> str | None:
    """Save a tensor there as exports are saved, read it, and take it away again; what went wrong, in words."""
    made = [folder for folder in (place.folder, *place.folder.parents) if not folder.exists()]
    probe = place.folder / PROBE
    try:
        place.folder.mkdir(parents=True, exist_ok=True)
        safetensors_file.write(probe, _ONE, {}, overwrite=True)
        tensors, _ = safetensors_file.read(probe)
        if bytes(tensors["probe"].data) != _ONE["probe"].data:
            return f"{place.folder}: gives back other bytes than were written"
        probe.unlink()
    except (OSError, ConvertError) as error:
        text = f"{place.folder}: {error.strerror or error}" if isinstance(error, OSError) else str(error)
        return text.replace(f"{os.sep}{PROBE}: ", ": ")
    finally:
        for folder in made:
            with suppress(OSError):  # somebody else has put something there
                folder.rmdir()
    return None


def _lacking(folder: Path, count: int, recursive: bool) -> bool:
    with suppress(OSError):
        return len(files_in(folder, recursive=recursive).pictures) < count
    return True
