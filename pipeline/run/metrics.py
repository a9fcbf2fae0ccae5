"""One JSON object a step, appended and flushed: what a killed run measured is still there."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ..errors import StageError
from ..report.lock import hold


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
    """Writes `metrics.jsonl` of a run's folder. StageError when another run has begun in the same folder.

    The file is locked as long as the run is at work (see `report.lock`).
    """

    def __init__(self, folder: Path) -> None:
        try:
            self._file = (folder / "metrics.jsonl").open("x", encoding="utf-8")
        except FileExistsError:
            raise StageError(f"another run has just begun in {folder}: choose another --out") from None
        hold(self._file)

    def write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(finite(row), ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()
