"""What moves the rows of words, and the averages of them: in each process for the words that are its share."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..words.norms import NormStatistics, apply_rules
from ..words.rows import WordRows
from .ema import Average
from .schedule_free import averages_itself
from .word_optimizers import RowOptimizer, RuleOf, row_optimizer
from .word_rates import Moving
from .word_shares import Shares


class RowStates:
    """An optimizer and, where one is asked for, an average for the rows of each encoder.

    With several processes all must call the same methods in the same order, but for `restore`.
    """

    def __init__(
        self, rows: Mapping[str, WordRows], optimizer: Mapping[str, Any], ema: float | None, shares: Shares,
        rules: Mapping[str, RuleOf],
    ) -> None:  # fmt: skip
        """`ema` is the decay of the average; None keeps none, and an optimizer that has its own needs none.

        `rules` give the norm rule of a word in each encoder, for such an optimizer.
        """
        self.rows, self.shares = rows, shares
        self.optimizers: dict[str, RowOptimizer] = {
            key: row_optimizer(table, optimizer, shares.own[key], rules[key]) for key, table in rows.items()
        }
        self.averages: dict[str, Average] = {}
        if ema is not None and not averages_itself(optimizer["kind"]):
            self.averages = {key: Average(table.values[shares.own[key]], ema, rows=True) for key, table in rows.items()}
        self.averaged = bool(self.averages) or averages_itself(optimizer["kind"])  # not what is trained is to be used
        self._shows = self.averaged or optimizer["kind"] != "adamw"

    def move(self, parts: Mapping[str, Moving], clip: float, rates: Mapping[str, Tensor], factor: float) -> None:
        """Move these rows along `clip` times their gradients; `rates` (all rows,) times `factor` are the step sizes."""
        moved = {key: part for key, part in parts.items() if len(part.index)}
        for key, part in moved.items():
            own, speed = self.shares.part(key, part, rates[key][part.index])
            if len(own.index):
                self.optimizers[key].step(own.words, own.index, own.values, own.gradient * clip, speed * factor)
        self.shares.tell({key: part.index for key, part in moved.items()})

    def average(self, key: str, index: Tensor, rules: Sequence[Any], statistics: NormStatistics, norms: Tensor) -> None:
        """Take rows that a step has moved into their average, which keeps the norm rules: a mean of vectors is shorter.

        `rules` and `norms` (those that the rule `initial` keeps) are of the rows of `index`.
        """
        if key not in self.averages:
            return
        average, places = self.averages[key], self.shares.places(key, index)
        average.update(places)
        mine = self.shares.among(key, index)
        own = [rules[number] for number in mine.tolist()]
        if any(rule is not None for rule in own):
            average.shadow[places] = apply_rules(average.shadow[places], own, statistics, norms[mine])

    @torch.no_grad()
    def take(self, key: str, index: Tensor, average: Mapping[str, Tensor]) -> None:
        """The rows of `index` have been given other values: their average begins with those, or goes on as `average`
        says (its state, of these rows)."""
        if key not in self.averages:
            return
        own, mine, places = self.averages[key], self.shares.among(key, index), self.shares.places(key, index)
        values = average.get("shadow", self.rows[key].values[index]).to(own.shadow)
        own.shadow[places] = values[mine]
        own.counts[places] = average["counts"].to(own.counts)[mine] if average else 0.0

    def show(self, words: Collection[str], use: bool) -> None:
        """Exchange all rows with their averages; schedule-free optimizers do so for `words`."""
        if not self._shows:
            return
        for key, optimizer in self.optimizers.items():
            optimizer.show(words, use)
            if key in self.averages:
                self.averages[key].swap()
        self.shares.tell_all()

    def settle(self, words: Sequence[str]) -> None:
        """From here on the rows of these words are what is to be used of them: their average, where there is one."""
        if not self._shows or not words:
            return
        for key, optimizer in self.optimizers.items():
            optimizer.settle(words)
            if key in self.averages:
                self.averages[key].settle(self.shares.places(key, self._index(key, words)))
        self.shares.tell({key: self._index(key, words) for key in self.rows})

    def _index(self, key: str, words: Sequence[str]) -> Tensor:
        table = self.rows[key]
        return torch.tensor(table.index(words), dtype=torch.long, device=table.values.device)

    def step_sizes(
        self, rates: Mapping[str, Mapping[str, float]], words: Collection[str]
    ) -> dict[str, tuple[float, float]]:
        """For each word the largest step size of its encoders, and the largest multiple of a rate that was found.

        A step size is the learning rate (`rates` by word and encoder) times what Prodigy has found, 1 for others.
        """
        told = self.shares.numbers(
            {(key, word): self.optimizers[key].effective(word) for word in words for key in rates[word]}
        )
        return {
            word: (
                max(rate * told[key, word] for key, rate in rates[word].items()),
                max(told[key, word] for key in rates[word]),
            )
            for word in words
        }

    def state(self) -> dict[str, Any]:
        """Optimizers and averages of all rows, by encoder; with several processes in the main one alone."""
        parts = self.shares.collected({
            "optimizers": {key: one.state() for key, one in self.optimizers.items()},
            "averages": {key: one.state() for key, one in self.averages.items()},
        })  # fmt: skip
        if not parts:
            return {}
        return {
            kind: {key: one.joined([part[kind][key] for part in parts]) for key, one in those.items()}
            for kind, those in (("optimizers", self.optimizers), ("averages", self.averages))
        }

    def restore(self, tree: Mapping[str, Any]) -> None:
        """Go on from the state of all rows. Raises StageError when it does not fit."""
        for key, optimizer in self.optimizers.items():
            optimizer.restore(tree["optimizers"][key])
        for key, average in self.averages.items():
            average.restore({name: values[self.shares.own[key]] for name, values in tree["averages"][key].items()})
