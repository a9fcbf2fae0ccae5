"""Files that a folder stands for: those that may hold embeddings."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from .errors import ConvertError

EXTENSIONS = (".safetensors", ".pt", ".bin", ".ckpt", ".pti", ".png", ".webp", ".jxl", ".avif")


def files_in(paths: Iterable[Path]) -> list[Path]:
    """The files as given, and for a folder all in it and below that may hold embeddings, in the order of their names.

    A pattern (`*.pt`, `**/*.pt`) that no shell has expanded stands for the files it matches. Previews, optimizer
    states (`.optim`), hidden and empty files of a folder are skipped. A folder without any, or one that cannot be
    read, is listed itself: `open_file` reports the error when its turn comes.
    """
    found: list[Path] = []
    for path in paths:
        if not os.path.isdir(path):
            found += [path] if os.path.lexists(path) else _matching(path)
            continue
        try:
            inside = sorted(_inside(str(path)))
        except OSError:
            inside = []
        found += map(Path, inside or [str(path)])
    return list(dict.fromkeys(found))


def subfolder_of(path: Path, paths: Iterable[Path]) -> str:
    """Where a file is below the folder of `paths` that it was found in; empty if it was named itself."""
    for folder in paths:
        if path != folder and path.is_relative_to(folder):
            return os.fspath(path.parent.relative_to(folder))
    return ""


def nothing_in(folder: Path) -> ConvertError:
    """The error for a folder without files that may hold embeddings."""
    try:
        os.listdir(folder)
    except OSError as error:
        return ConvertError(f"{folder}: cannot read this folder ({error.strerror})")
    return ConvertError(f"{folder}: no file with an extension of embedding files ({', '.join(sorted(EXTENSIONS))})")


def _matching(path: Path) -> list[Path]:
    """Files that a pattern matches; the path itself if there are none, so that opening it reports the error."""
    if not any(sign in str(path) for sign in "*?[") or "\0" in str(path):
        return [path]
    from glob import glob

    return [Path(name) for name in sorted(glob(str(path), recursive=True)) if not os.path.isdir(name)] or [path]


def _inside(folder: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _inside(entry.path)
            elif _may_hold_embeddings(entry):
                yield entry.path


def _may_hold_embeddings(entry: os.DirEntry[str]) -> bool:
    name, dot, extension = entry.name.rpartition(".")
    if not name or name.startswith(".") or name.endswith(".preview") or (dot + extension).lower() not in EXTENSIONS:
        return False
    return entry.is_file() and entry.stat().st_size > 0
