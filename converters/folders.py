"""Files that a user means by a folder: those that may hold words."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from .errors import ConvertError

EXTENSIONS = frozenset((".safetensors", ".pt", ".bin", ".ckpt", ".pti", ".png", ".webp", ".jxl", ".avif"))


def files_in(paths: Iterable[Path]) -> list[Path]:
    """The files as given, and for a folder all in it and below that may hold words, in the order of their names.

    Previews, optimizer states (`.optim`), hidden and empty files of a folder are passed over. Raises ConvertError
    for a folder without any.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(file for file in path.rglob("*") if _may_hold_words(file))
        if not inside:
            raise ConvertError(f"{path}: no file in this folder may hold words ({', '.join(sorted(EXTENSIONS))})")
        found += inside
    return list(dict.fromkeys(found))


def _may_hold_words(file: Path) -> bool:
    if file.suffix.lower() not in EXTENSIONS or file.name.startswith(".") or file.stem.endswith(".preview"):
        return False
    return file.is_file() and file.stat().st_size > 0
