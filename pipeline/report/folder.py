"""Reads what a run left behind, also of a run that broke off in the middle of a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pivotune.pipeline.errors import StageError

Json = dict[str, Any]


def read_manifest(folder: Path) -> Json:
    """The run's manifest. Raises StageError, with the way out, where there is none."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StageError(f"{folder}: no manifest.json, so this is not the folder of a run") from error
    except ValueError as error:  # bad JSON, bad UTF-8
        raise StageError(f"{path}: not a manifest ({error})") from error
    if not isinstance(manifest, dict):
        raise StageError(f"{path}: not a manifest (expected an object)")
    return manifest


def read_metrics(folder: Path) -> tuple[list[Json], int]:
    """The steps in order, each once, and how many lines could not be read.

    A resumed run repeats the steps after its checkpoint: the later line counts.
    """
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return [], 0
    steps: dict[tuple[int, int], Json] = {}
    unread = 0
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                steps[int(row["stage"]), int(row["step"])] = row
            except (ValueError, KeyError, TypeError):
                unread += 1
    return [steps[key] for key in sorted(steps)], unread
