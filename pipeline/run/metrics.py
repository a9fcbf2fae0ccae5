"""One JSON object a step, appended and flushed: what a killed run measured is still there."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import StageError


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

    def __init__(self, folder: Path, size: int = 0, *, write: bool = True) -> None:
        """Go on behind the first `size` bytes that an earlier process wrote; what it wrote after them is done again.

        Without `write` nothing is opened or written: another process does.
        """
        self._file: BinaryIO | None = None
        if not write:
            return
        path = folder / "metrics.jsonl"
        if path.exists() and path.stat().st_size < size:
            raise StageError(f"{path} is shorter than when the checkpoint was written: it was changed since")
        self._file = path.open("a+b")
        self._file.truncate(size)

    def settled(self) -> int:
        """Bytes written so far, which are on the disk now: a checkpoint that counts them can rely on them."""
        if self._file is None:
            return 0
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def write(self, row: dict[str, Any]) -> None:
        if self._file is None:
            return
        self._file.write(json.dumps(finite(row), ensure_ascii=False).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
