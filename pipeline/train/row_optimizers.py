"""Optimizers for the rows of a table of embeddings, of which a step trains only a few."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ..embeddings.injection import EmbeddingRows
from ..errors import StageError
from ..recipe.options import OptimizerOptions
from .optimizers import (
    AverageSwap,
    Rule,
    constrain,
    learning_rate_factor,
    load_state,
    make_optimizer,
    set_learning_rate,
)
from .packing import copy_into


class LazyAdamW:
    """AdamW (Loshchilov & Hutter 2019) with a step count and moments for each row.

    A row that is not in the batch is unchanged: no momentum, no decay, no step counted. If every step trains every row
    it is exactly AdamW. State: 8 bytes per value and 4 per row.
    """

    def __init__(
        self, values: Tensor, *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0.0, own: slice | None = None,
    ) -> None:  # fmt: skip
        """`own` are the rows that it trains and has state for; by default all."""
        self.values, self.own = values, own or slice(0, len(values))
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.moment = torch.zeros_like(values[self.own])
        self.square = torch.zeros_like(values[self.own])
        self.steps = torch.zeros(len(self.moment), dtype=torch.float32, device=values.device)

    def state(self) -> dict[str, Tensor]:
        """Moments and step counts by name: the tensors themselves."""
        return {"moment": self.moment, "square": self.square, "steps": self.steps}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue with the moments and step counts of `state`. Raises StageError when their shapes differ."""
        for name, values in self.state().items():
            copy_into(values, state[name], f"the optimizer's {name}")

    @torch.no_grad()
    def step(self, index: Tensor, rows: Tensor, gradient: Tensor, rate: Tensor | float) -> Tensor:
        """One step of the rows `index` (rows,) with values `rows` and `gradient`, both (rows, width) float32.

        `rate` is one learning rate or one per row. Returns the new values and writes them into the table.
        """
        first, second = self.betas
        at = index - self.own.start
        steps = self.steps[at] + 1
        moment = self.moment[at].lerp_(gradient, 1 - first)
        square = self.square[at].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        left_first = -torch.expm1(steps * math.log(first)) if first else torch.ones_like(steps)
        left_second = -torch.expm1(steps * math.log(second))  # 1 - second ** steps, exact to float32
        size = square.sqrt().div_(left_second.sqrt_().unsqueeze(1)).add_(self.eps)
        updated = rows.detach().clone()
        if self.weight_decay:
            updated.sub_(updated * (torch.as_tensor(rate, device=updated.device).reshape(-1, 1) * self.weight_decay))
        updated.sub_(moment.div(size).mul_((rate / left_first).unsqueeze(1)))
        self.steps[at], self.moment[at], self.square[at] = steps, moment, square
        self.values[index] = updated
        return updated


RuleOf = Callable[[str, bool], Rule | None]


def no_rule(embedding: str, average: bool) -> Rule | None:
    """No norm rule."""
    return None


class RowOptimizer(Protocol):
    """Trains rows of the table of one encoder; all other rows and their state stay bit-equal.

    An optimizer of a shard gets only the rows of that shard, and restores only their state.
    """

    def step(self, embeddings: Sequence[str], index: Tensor, rows: Tensor, gradient: Tensor, rate: Tensor) -> Tensor:
        """One step of the rows (rows, width) of these embeddings; returns the new values, which the table has too.

        `index` (rows,) has their indices, embedding after embedding, `rate` (rows,) their learning rates.
        """

    def effective(self, embedding: str) -> float:
        """What an embedding's learning rate is multiplied by: Prodigy's `d`, 1 for others."""

    def use_average(self, embeddings: Iterable[str], average: bool) -> None:
        """Put the averages of schedule-free optimizers into the table, or the trained values."""

    def settle(self, embeddings: Iterable[str]) -> None:
        """End the training of these embeddings: the table keeps the values that are exported."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint stores: dicts, numbers and tensors."""

    def merge_shards(self, states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The state of all rows, from the states of the shards in order."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the `state` of all rows. Raises StageError when it does not fit."""


class AdamRows:
    """The default: AdamW for all embeddings of a step at once, with step counts and moments per row."""

    def __init__(self, rows: EmbeddingRows, options: OptimizerOptions, own: slice) -> None:
        self.adam = LazyAdamW(rows.values, **options.settings, weight_decay=options.weight_decay, own=own)

    def step(self, embeddings: Sequence[str], index: Tensor, rows: Tensor, gradient: Tensor, rate: Tensor) -> Tensor:
        return self.adam.step(index, rows, gradient, rate)

    def effective(self, embedding: str) -> float:
        return 1.0

    def use_average(self, embeddings: Iterable[str], average: bool) -> None:
        """The table has the trained values, which are exported."""

    def settle(self, embeddings: Iterable[str]) -> None:
        """The table has them."""

    def state(self) -> dict[str, Any]:
        return dict(self.adam.state())

    def merge_shards(self, states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {name: torch.cat([state[name] for state in states]) for name in self.adam.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.adam.restore({name: values[self.adam.own] for name, values in state.items()})


class PerEmbedding:
    """An optimizer of a library for each embedding of one encoder.

    State other than moments (Prodigy's `d`, Adafactor's rows and columns, a step count) is then the embedding's own:
    rare embeddings neither inherit nor delay the learning rate of others, an embedding that is not in the batch costs
    nothing, and none of its state changes.
    """

    def __init__(self, rows: EmbeddingRows, options: OptimizerOptions, own: slice, rule_of: RuleOf = no_rule) -> None:
        """`rule_of`: an embedding's norm rule after a step or (True) for its average; for schedule-free optimizers."""
        self.rows, self.options, self.own, self.rule_of = rows, options, own, rule_of
        self.parameters: dict[str, Tensor] = {}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self._swaps: dict[str, AverageSwap] = {}

    def step(self, embeddings: Sequence[str], index: Tensor, rows: Tensor, gradient: Tensor, rate: Tensor) -> Tensor:
        updated, start = [], 0
        for embedding in embeddings:
            part = slice(start, start + len(self.rows.spans[embedding]))
            updated.append(self._step(embedding, rows[part], gradient[part], float(rate[start])))
            start = part.stop
        after = torch.cat(updated)
        self.rows.values[index] = after
        return after

    def _step(self, embedding: str, rows: Tensor, gradient: Tensor, rate: float) -> Tensor:
        if rate == 0:
            return rows.detach()
        optimizer = self._of(embedding, rows, rate)
        parameter = self.parameters[embedding]
        with torch.no_grad():
            parameter.copy_(rows)  # a norm rule may have changed them since
        parameter.grad = gradient.clone()
        set_learning_rate(optimizer, rate)
        optimizer.step()
        parameter.grad = None
        rule = self.rule_of(embedding, False)
        if embedding in self._swaps and rule is not None:
            constrain(optimizer, rule)
        return parameter.detach()

    def _of(self, embedding: str, rows: Tensor, rate: float) -> torch.optim.Optimizer:
        if embedding not in self.optimizers:
            self.parameters[embedding] = rows.detach().clone().requires_grad_(True)
            self.optimizers[embedding] = make_optimizer([self.parameters[embedding]], self.options, rate)
            if self.options.facts.averages_itself:
                self._swaps[embedding] = AverageSwap(self.optimizers[embedding])
        return self.optimizers[embedding]

    def effective(self, embedding: str) -> float:
        return learning_rate_factor(self.optimizers[embedding]) if embedding in self.optimizers else 1.0

    def use_average(self, embeddings: Iterable[str], average: bool) -> None:
        for embedding in embeddings:
            if embedding in self._swaps:
                parameter, values = self.parameters[embedding], self.rows.of(embedding)
                if average:
                    with torch.no_grad():
                        parameter.copy_(values)
                self._swaps[embedding].use_average(average)
                rule = self.rule_of(embedding, True) if average else None
                values.copy_(parameter.detach() if rule is None else rule(parameter.detach()))

    def settle(self, embeddings: Iterable[str]) -> None:
        self.use_average(embeddings, True)
        for embedding in embeddings:
            if embedding in self._swaps:
                self._swaps[embedding].settle()

    def state(self) -> dict[str, Any]:
        return {
            embedding: {"values": self.parameters[embedding], "optimizer": optimizer.state_dict()}
            for embedding, optimizer in self.optimizers.items()
        }

    def merge_shards(self, states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {embedding: own for state in states for embedding, own in state.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.parameters, self.optimizers, self._swaps = {}, {}, {}
        for embedding, stored in state.items():
            if embedding not in self.rows.spans or stored["values"].shape != self.rows.of(embedding).shape:
                raise StageError(
                    f"the checkpoint's embedding {embedding!r} is not in this run, or has a different number of vectors"
                )
            if not self.own.start <= self.rows.spans[embedding].start < self.own.stop:
                continue
            rate = float(stored["optimizer"]["param_groups"][0]["lr"])
            optimizer = self._of(embedding, stored["values"].to(self.rows.values.device), rate)
            load_state(optimizer, stored["optimizer"])


def row_optimizer(
    rows: EmbeddingRows, options: OptimizerOptions, own: slice | None = None, rule_of: RuleOf = no_rule
) -> RowOptimizer:
    """The optimizer of a recipe's table for the rows of one encoder; `own` are those that it trains."""
    own = own or slice(0, len(rows))
    return AdamRows(rows, options, own) if options.kind == "adamw" else PerEmbedding(rows, options, own, rule_of)
