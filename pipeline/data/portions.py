"""What each of several processes does of a step's micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..processes import Processes
from .batch import Batch
from .dataset import Dataset


def portion(dataset: Dataset, numbers: range, processes: Processes, *, in_step: bool) -> list[Batch | None]:
    """This process's part of each of these micro-batches, None where that is nothing; alone it is all of them.

    With `in_step` all processes get equally many, some of them `idle`: a part of the model that is spread over the
    processes asks all of them for every batch.
    """
    if processes.count == 1:
        return [dataset.at(number) for number in numbers]
    with processes.together():  # a picture may have vanished
        sizes = [dataset.size(number) for number in numbers]
        parts = processes.shares(sizes)
        missing = _most(sizes, processes) - sum(map(_holds, parts)) if in_step else 0
        batches: list[Batch | None] = []
        for number, part in zip(numbers, parts, strict=True):
            if _holds(part):
                batches.append(dataset.at(number, part))
            elif missing > 0:
                batches.append(replace(dataset.at(number, slice(0, 1)), idle=True))
                missing -= 1
            else:
                batches.append(None)
        return batches


def _most(sizes: Sequence[int], processes: Processes) -> int:
    """The most micro-batches that a process has something of."""
    everyone = (replace(processes, index=index).shares(sizes) for index in range(processes.count))
    return max(sum(map(_holds, parts)) for parts in everyone)


def _holds(part: slice) -> bool:
    return bool(part.stop > part.start)
