"""Any optimizer for the rows of words: one small optimizer a word and encoder, made when the word is first seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import StageError
from ..words.rows import WordRows
from .lazy_adamw import LazyAdamW
from .optimizers import found, load_state, make_optimizer, set_rate, show_averages


class RowOptimizer(Protocol):
    """Moves rows of the table of one encoder; rows that it is not given stay bit for bit, and so does their state.

    One that has been made for some of the rows, its own, is never given others, and puts only theirs back.
    """

    def step(self, words: Sequence[str], index: Tensor, rows: Tensor, gradient: Tensor, rate: Tensor) -> Tensor:
        """Move the rows (rows, width) of these words along `gradient`; the table is written. Returns them moved.

        `index` (rows,) are their numbers in the table, word after word, `rate` (rows,) their learning rates.
        """

    def effective(self, word: str) -> float:
        """How many times its learning rate a word's step size is: what Prodigy has found, 1 for others."""

    def show(self, words: Iterable[str], shown: bool) -> None:
        """Put the averages of schedule-free optimizers into the table, or take them out to go on."""

    def state(self) -> dict[str, Any]:
        """All that is needed to go on: dicts, numbers and tensors."""

    def joined(self, states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The state of all rows from those of optimizers that have them in turn."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from the `state` of all rows. Raises StageError when it does not fit."""


class AdamRows:
    """The default: AdamW for all words of a step at once, with step counts and moments a row."""

    def __init__(self, rows: WordRows, options: Mapping[str, Any], own: slice) -> None:
        betas = (float(options["betas"][0]), float(options["betas"][1]))
        decay = float(options["weight_decay"] or 0.0)
        self.adam = LazyAdamW(rows.values, betas=betas, eps=float(options["eps"]), weight_decay=decay, own=own)

    def step(self, words: Sequence[str], index: Tensor, rows: Tensor, gradient: Tensor, rate: Tensor) -> Tensor:
        return self.adam.step(index, rows, gradient, rate)

    def effective(self, word: str) -> float:
        return 1.0

    def show(self, words: Iterable[str], shown: bool) -> None:
        """Nothing to show: the table holds the words."""

    def state(self) -> dict[str, Any]:
        return dict(self.adam.state())

    def joined(self, states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {name: torch.cat([state[name] for state in states]) for name in self.adam.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.adam.restore({name: values[self.adam.own] for name, values in state.items()})


class PerWord:
    """An optimizer of a library for each word of one encoder.

    What such an optimizer knows beside its moments (Prodigy's step size, Adafactor's rows and columns, a step count)
    is then the word's own: words that are seldom seen neither inherit nor delay what others have found, a word that is
    not in the batch costs nothing, and none of its state changes.
    """

    def __init__(self, rows: WordRows, options: Mapping[str, Any], own: slice) -> None:
        self.rows, self.options, self.own = rows, options, own
        self.parameters: dict[str, Tensor] = {}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}

    def step(self, words: Sequence[str], index: Tensor, rows: Tensor, gradient: Tensor, rate: Tensor) -> Tensor:
        moved, start = [], 0
        for word in words:
            part = slice(start, start + len(self.rows.spans[word]))
            moved.append(self._step(word, rows[part], gradient[part], float(rate[start])))
            start = part.stop
        after = torch.cat(moved)
        self.rows.values[index] = after
        return after

    def _step(self, word: str, rows: Tensor, gradient: Tensor, rate: float) -> Tensor:
        if rate == 0:
            return rows.detach()
        optimizer = self._of(word, rows, rate)
        parameter = self.parameters[word]
        with torch.no_grad():
            parameter.copy_(rows)  # a norm rule may have changed them since
        parameter.grad = gradient.clone()
        set_rate(optimizer, rate)
        optimizer.step()
        parameter.grad = None
        return parameter.detach()

    def _of(self, word: str, rows: Tensor, rate: float) -> torch.optim.Optimizer:
        if word not in self.optimizers:
            self.parameters[word] = rows.detach().clone().requires_grad_(True)
            self.optimizers[word] = make_optimizer([self.parameters[word]], self.options, rate)
        return self.optimizers[word]

    def effective(self, word: str) -> float:
        return found(self.optimizers[word]) if word in self.optimizers else 1.0

    def show(self, words: Iterable[str], shown: bool) -> None:
        for word in words:
            if word in self.optimizers:
                parameter, values = self.parameters[word], self.rows.of(word)
                with torch.no_grad():
                    parameter.copy_(values)
                show_averages([self.optimizers[word]], shown)
                values.copy_(parameter.detach())

    def state(self) -> dict[str, Any]:
        return {
            word: {"values": self.parameters[word], "optimizer": optimizer.state_dict()}
            for word, optimizer in self.optimizers.items()
        }

    def joined(self, states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {word: kept for state in states for word, kept in state.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.parameters, self.optimizers = {}, {}
        for word, kept in state.items():
            if word not in self.rows.spans or kept["values"].shape != self.rows.of(word).shape:
                raise StageError(f"the checkpoint's word {word!r} is none of this run, or has other vectors")
            if not self.own.start <= self.rows.spans[word].start < self.own.stop:
                continue
            rate = float(kept["optimizer"]["param_groups"][0]["lr"])
            optimizer = self._of(word, kept["values"].to(self.rows.values.device), rate)
            load_state(optimizer, kept["optimizer"])


def row_optimizer(rows: WordRows, options: Mapping[str, Any], own: slice | None = None) -> RowOptimizer:
    """The optimizer that a recipe's table asks for, over the rows of one encoder; `own` are those it is to move."""
    kind = AdamRows if options["kind"] == "adamw" else PerWord
    return kind(rows, options, own or slice(0, len(rows)))
