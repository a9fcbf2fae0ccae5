"""The processes of a run begin with the same inputs and go on from the same checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import StageError
from ..processes import Processes
from .checkpoint import FOLDER, Checkpoint, newest_checkpoint, read_checkpoint
from .differences import input_differences

SHOWN = 5  # differences that are listed


def hold_alike(inputs: Mapping[str, Any], processes: Processes) -> None:
    """StageError when a process, on another machine, has another model, other pictures or other versions."""
    main, *others = processes.gathered(inputs)
    for number, other in enumerate(others, 1):
        found = input_differences(main, other)
        if found:
            listed = "; ".join(map(str, found[:SHOWN]))
            raise StageError(f"process {number} has other inputs than the main one: {listed}")


def common_checkpoint(folder: Path, processes: Processes, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that is whole, as the main process finds it, in every process.

    Raises StageError when one of them does not see the file.
    """
    found = newest_checkpoint(folder, say) if processes.main else None
    name = processes.from_main(lambda: found.name if found else None)
    if name is None or processes.main:
        with processes.together():
            return found
    with processes.together():
        try:
            return read_checkpoint(folder / FOLDER / name)
        except StageError as error:
            raise StageError(f"{error}; with several machines the run's folder must be on a shared disk") from error
