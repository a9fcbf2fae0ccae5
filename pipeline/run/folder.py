"""A run's folder: one run each, never written over."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..errors import StageError


def refuse_taken(out: Path | None) -> None:
    """StageError when the folder asked for holds something: said before minutes are spent on loading a model."""
    if out is not None and out.is_dir() and any(out.iterdir()):
        raise StageError(f"{out} holds files already; a run never writes over them: choose another --out")


def open_folder(name: str, out: Path | None) -> Path:
    """Make the folder of a new run. Without `out` it is `runs/<name>`, or `runs/<name>-2` where that is taken.

    Raises StageError when `out` holds something already or cannot be made.
    """
    try:
        if out is not None:
            refuse_taken(out)
            out.mkdir(parents=True, exist_ok=True)
            return out.absolute()
        for number in range(1, 10_000):
            folder = Path("runs") / (name if number == 1 else f"{name}-{number}")
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                continue
            return folder.absolute()
    except OSError as error:
        raise StageError(f"the run's folder cannot be made: {error}") from error
    raise StageError(f"runs/{name}-… : all 9,999 names are taken")


def write_json(path: Path, value: Any) -> None:
    """Write JSON for people and programs: the file is either the old one or the whole new one."""
    temporary = path.with_name(f".{path.name}.part")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
