"""Renaming an embedding: in its file and of its file, which most programs use as the name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from .atomic import Batch
from .bundle import check_name
from .embedding import Contents
from .embeddings import names, other_half, what
from .errors import ConvertError
from .folders import EXTENSIONS
from .lora import describe
from .names import distinct_stems
from .programs import programs
from .read import Identified, candidate_families, identify, own_embeddings
from .stored import Stored
from .verdicts import verdicts
from .write import Written, file_data, write_contents

NAMED_FOR = "a1111"  # the program whose allowed characters a file's name has: most others allow these too


def rename(files: Batch, path: Path, new: str, out: Path | None = None) -> list[Written]:
    """The same file with an embedding renamed; `old=new` selects one of several.

    `out` is a file, or a folder (the file's own, if it is None), and then a file of one embedding is called like the
    embedding, any other as it was. The second of diffusers' two SDXL files comes along. Raises ConvertError for an
    embedding that does not exist, or a name that is in use or not allowed.
    """
    found = identify(path)
    old, name = _meant(path, found, new)
    place = _place(path, found, name, out)
    written = [_written(files, place, found, old, name)]
    if (half := other_half(path, found)) is not None:
        written.append(_written(files, place.with_stem(f"{place.stem}_2"), half, old, name))
    return written


def _meant(path: Path, found: Identified, new: str) -> tuple[str, str]:
    """The embedding's old and new name."""
    embeddings = own_embeddings(found.contents)
    if not embeddings:
        raise ConvertError(f"{path}: {what(found)}, so there is no embedding to rename")
    old, given, name = new.rpartition("=")
    if not given and len(embeddings) > 1:
        raise ConvertError(f"{path}: has {len(embeddings)} embeddings; choose one with OLD=NEW: {names(embeddings)}")
    if given and old not in [embedding.name for embedding in embeddings]:
        raise ConvertError(f"{path}: has no embedding {old!r}; choose one with OLD=NEW: {names(embeddings)}")
    if not name.strip():
        raise ConvertError(f"{path}: the new name is blank")
    old = old if given else embeddings[0].name
    if any(embedding.name.casefold() == name.casefold() for embedding in embeddings if embedding.name != old):
        raise ConvertError(f"{path}: already has an embedding {name!r}")
    if found.dialect == "bundle":
        check_name(name)
    return old, name


def _place(path: Path, found: Identified, name: str, out: Path | None) -> Path:
    """The file to write: the file of a single embedding is named after it, a LoRA or pack keeps its name."""
    folder = path.parent if out is None else out
    if out is not None and not out.is_dir() and out.suffix.lower() in EXTENSIONS:
        return out
    if found.contents.rest or len(found.contents.embeddings) > 1 or found.dialect == "bundle":
        return folder / f"{path.stem}.safetensors"
    program = programs()[NAMED_FOR]
    try:
        return folder / f"{distinct_stems([name], program.characters, program.reserved)[name]}.safetensors"
    except ConvertError as error:
        raise ConvertError(f"{path}: no file can be named after {name[:40]!r}; pass --out FILE") from error


def _written(files: Batch, place: Path, found: Identified, old: str, name: str) -> Written:
    embeddings = tuple(
        replace(embedding, name=name) if embedding.name == old else embedding
        for embedding in own_embeddings(found.contents)
    )
    contents, dialect = replace(found.contents, embeddings=embeddings), found.dialect or ""
    stored = Stored(place, *file_data(contents, dialect))
    typed, mute = _typed(stored, contents, dialect)
    losses = (f"prompts of {', '.join(mute)} cannot contain the name of this file",) if mute else ()
    [written] = write_contents(files, place, contents, dialect, losses=losses)
    return written._replace(prompts=typed)


def _typed(stored: Stored, contents: Contents, dialect: str) -> tuple[dict[str, str], list[str]]:
    """What the user types in each program that loads the file, and titles of those whose prompts cannot contain it."""
    lora = describe(contents.rest, contents.metadata) if stored.is_lora else None
    found = verdicts(stored, contents, candidate_families(contents, dialect, lora), stored.is_lora)
    typed = {
        name: verdict.prompt
        for name, verdict in found.items()
        if verdict.loads == "yes" or (verdict.prompt and not lora)
    }
    able = programs()
    mute = [
        name for name in typed if not lora and "{stem}" in able[name].prompt and not able[name].can_hold(stored.stem)
    ]
    return {name: prompt for name, prompt in typed.items() if name not in mute}, [able[name].title for name in mute]
