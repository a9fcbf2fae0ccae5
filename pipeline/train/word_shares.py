"""Words shared out over the processes of a run: each has the optimizer's state and the averages of its own words alone.

Every process keeps the whole table, 4 bytes a value: prompts may hold any word. What moves a word, 8 bytes a value with
AdamW and 4 more with an average, is with its owner. A step's gradients are added up for all, owners move their rows,
and those rows alone travel. (Rajbhandari et al. 2020, ZeRO, stage 1, for rows of a table.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..processes import ALONE, Processes
from ..words.rows import WordRows
from .word_rates import Moving


class Shares:
    """Runs of words next to one another, as many as there are processes; a process alone owns every word."""

    def __init__(self, rows: Mapping[str, WordRows], processes: Processes = ALONE) -> None:
        """`rows` by encoder, of the same words in the same order."""
        self.rows, self.processes = rows, processes
        self._blocks = {key: [_block(table, processes, owner) for owner in range(processes.count)]
                        for key, table in rows.items()}  # fmt: skip
        self.own = {key: blocks[processes.index] for key, blocks in self._blocks.items()}

    @property
    def several(self) -> bool:
        """Whether other processes own words too."""
        return self.processes.count > 1

    def part(self, key: str, moving: Moving, rates: Tensor) -> tuple[Moving, Tensor]:
        """What this process moves of the rows that a step moves, and its part of their learning rates (rows,)."""
        if not self.several:
            return moving, rates
        mine = self._mine(key, moving.index)
        words = tuple(word for word in moving.words if self.rows[key].spans[word] and self._owns(key, word))
        return Moving(words, moving.index[mine], moving.values[mine], moving.gradient[mine]), rates[mine]

    def places(self, key: str, index: Tensor) -> Tensor:
        """Where this process's own of these rows stand among its own."""
        return index if not self.several else index[self._mine(key, index)] - self.own[key].start

    def among(self, key: str, index: Tensor) -> Tensor:
        """Which of these rows, by their numbers in `index`, are this process's own."""
        return self._mine(key, index).nonzero().flatten()

    def _mine(self, key: str, index: Tensor) -> Tensor:
        return (index >= self.own[key].start) & (index < self.own[key].stop)

    @torch.no_grad()
    def tell(self, index: Mapping[str, Tensor]) -> None:
        """Bring these rows (encoder key to their numbers) from their owners into every process's table, bit for bit."""
        if not self.several or not index:
            return
        told = []
        for key, rows in index.items():
            bits = self.rows[key].values[rows].view(torch.int32)
            told.append(bits.masked_fill_(~self._mine(key, rows).unsqueeze(1), 0))
        flat = self.processes.sum(torch.cat([bits.flatten() for bits in told]))  # of integers: one owner's, and zeros
        parts = flat.split([bits.numel() for bits in told])
        for (key, rows), bits, shape in zip(index.items(), parts, told, strict=True):
            self.rows[key].values[rows] = bits.view_as(shape).view(torch.float32)

    def tell_all(self) -> None:
        """Bring every row from its owner into every process's table."""
        for key, blocks in self._blocks.items():
            for owner, block in enumerate(blocks):
                self.processes.spread(self.rows[key].values[block], owner)

    def numbers(self, values: Mapping[tuple[str, str], float]) -> dict[tuple[str, str], float]:
        """What the owners say of (encoder key, word), each in place of what the others have for it."""
        mine = [value if self._owns(*place) else 0.0 for place, value in values.items()]
        return dict(zip(values, self.processes.numbers(mine), strict=True))

    def _owns(self, key: str, word: str) -> bool:
        return self.own[key].start <= self.rows[key].spans[word].start < self.own[key].stop

    def collected(self, state: Any) -> Sequence[Any]:
        """The states of all processes, one after the other, in the main one; nothing in the others."""
        return self.processes.collected(_on_the_cpu(state)) if self.several else [state]


def _block(table: WordRows, processes: Processes, owner: int) -> slice:
    """The rows of one process's words."""
    starts = [*(span.start for span in table.spans.values()), len(table)]
    first, last = (len(table.spans) * number // processes.count for number in (owner, owner + 1))
    return slice(starts[first], starts[last])


def _on_the_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: _on_the_cpu(one) for key, one in value.items()}
    return type(value)(_on_the_cpu(one) for one in value) if isinstance(value, (list, tuple)) else value
