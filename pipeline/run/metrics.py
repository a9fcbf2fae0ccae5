"""One JSON object a step, appended and flushed: what a killed run measured is still there."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from .metrics_file import NAME, kept_lines


def finite(value: Any) -> Any:
    """The same value with every number that JSON cannot spell as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return value


class Metrics:
    """Writes `metrics.jsonl` of a run's folder; what a step writes can be read at once."""

    def __init__(self, folder: Path, kept: Mapping[str, Any] | None = None, *, write: bool = True) -> None:
        """Go on behind what a checkpoint has `kept` of an earlier process (see `settled`); what that wrote after it is
        done again. StageError when it is no longer there as it was.

        Without `write` nothing is opened or written: another process does.
        """
        self._file: BinaryIO | None = None
        self._digest = hashlib.sha256()
        if not write:
            return
        path = folder / NAME
        before = kept_lines(path, kept) if kept else b""
        self._digest.update(before)
        self._file = path.open("a+b")
        self._file.truncate(len(before))

    def settled(self) -> dict[str, Any]:
        """What was written so far, by length and hash; it is on the disk now: a checkpoint can rely on it."""
        if self._file is None:
            return {"bytes": 0, "sha256": self._digest.hexdigest()}
        os.fsync(self._file.fileno())
        return {"bytes": os.fstat(self._file.fileno()).st_size, "sha256": self._digest.hexdigest()}

    def write(self, row: dict[str, Any]) -> None:
        """Append a line."""
        if self._file is None:
            return
        line = json.dumps(finite(row), ensure_ascii=False).encode() + b"\n"
        self._file.write(line)
        self._file.flush()
        self._digest.update(line)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
