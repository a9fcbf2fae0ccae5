"""Files that a user means by a folder: those that may hold embeddings."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from .errors import ConvertError

EXTENSIONS = (".safetensors", ".pt", ".bin", ".ckpt", ".pti", ".png", ".webp", ".jxl", ".avif")


def files_in(paths: Iterable[Path]) -> list[Path]:
    """The files as given, and for a folder all in it and below that may hold embeddings, in the order of their names.

    A pattern (`*.pt`, `**/*.pt`) that no shell has replaced stands for the files that it fits. Previews, optimizer
    states (`.optim`), hidden and empty files of a folder are passed over. A folder without any, or one that cannot be
    read, is in the list itself: `open_file` says what is wrong with it, when the others have had their turn.
    """
    found: list[Path] = []
    for path in paths:
        if not os.path.isdir(path):
            found += [path] if os.path.lexists(path) else _fitting(path)
            continue
        try:
            inside = sorted(_inside(str(path)))
        except OSError:
            inside = []
        found += map(Path, inside or [str(path)])
    return list(dict.fromkeys(found))


def nothing_in(folder: Path) -> ConvertError:
    """Why a folder gave no file that may hold embeddings."""
    try:
        os.listdir(folder)
    except OSError as error:
        return ConvertError(f"{folder}: this folder cannot be read ({error.strerror})")
    return ConvertError(f"{folder}: no file in this folder may hold embeddings ({', '.join(sorted(EXTENSIONS))})")


def _fitting(path: Path) -> list[Path]:
    """Files that a pattern fits; the path itself if none does, of which it is said later that it is not there."""
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
