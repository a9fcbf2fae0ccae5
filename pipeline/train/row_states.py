"""Which rows of a table of embeddings a step moves, their learning rates, and whether a gradient reached them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..distributed import ALONE, Processes
from ..embeddings.injection import ActiveRows, EmbeddingRows
from ..embeddings.norms import NormStatistics, apply_rules
from ..errors import StageError
from ..recipe.model import EmbeddingSpec
from ..recipe.options import LearningRate, NormRule, OptimizerOptions
from .ema import Average
from .row_optimizers import RowOptimizer, RuleOf, row_optimizer


def rate_for(rate: LearningRate | None, key: str) -> float | None:
    """The learning rate that one setting gives an encoder, or None where it says nothing of it."""
    return rate.get(key) if isinstance(rate, Mapping) else rate


def row_rates(key: str, rows: EmbeddingRows, embeddings: Sequence[EmbeddingSpec], default: LearningRate) -> Tensor:
    """(rows,) learning rates of one encoder: the embedding's own, per encoder where it says so, else the stage's.

    Rows of embeddings that are not trained have rate 0. Raises StageError when no setting has a number for this
    encoder.
    """
    rates = [0.0] * len(rows)
    for embedding in embeddings:
        if not embedding.train:
            continue
        own = rate_for(embedding.learning_rate, key)
        rate = own if own is not None else rate_for(default, key)
        if rate is None:
            raise StageError(f"learning_rate has no number for {key}: add it, 0 to hold its vectors still")
        span = rows.spans[embedding.placeholder]
        rates[span.start : span.stop] = [rate] * len(span)
    return torch.tensor(rates, dtype=torch.float32, device=rows.values.device)


def embedding_rates(
    rates: Mapping[str, Tensor], rows: Mapping[str, EmbeddingRows], embeddings: Iterable[str]
) -> dict[str, dict[str, float]]:
    """The learning rate of each embedding in the encoders in which it has rows, from those of the rows by encoder."""
    listed = {key: own.tolist() for key, own in rates.items()}
    spans = {key: rows[key].spans for key in rates}
    return {
        embedding: {key: listed[key][spans[key][embedding].start] for key in rates if spans[key][embedding]}
        for embedding in embeddings
    }


@dataclass(frozen=True, eq=False)
class Moving:
    """The rows of one encoder that a step moves: whose they are, their numbers, values and gradient."""

    embeddings: tuple[str, ...]
    index: Tensor
    values: Tensor
    gradient: Tensor


def moving(rows: ActiveRows, running: set[str], spans: Mapping[str, range], scale: float) -> Moving:
    """Those of the active rows that belong to running embeddings, with their gradient divided by `scale`.

    The gradient is zeros where nothing of the model listened to the rows.
    """
    gradient = torch.zeros_like(rows.leaf) if rows.leaf.grad is None else rows.leaf.grad
    if scale != 1.0:
        gradient = gradient / scale
    values = rows.leaf.detach()
    if all(embedding in running for embedding in rows.embeddings):
        return Moving(rows.embeddings, rows.index, values, gradient)
    keep = [embedding in running for embedding in rows.embeddings for _ in spans[embedding]]
    where = torch.tensor(keep, dtype=torch.bool, device=values.device)
    embeddings = tuple(embedding for embedding in rows.embeddings if embedding in running)
    return Moving(embeddings, rows.index[where], values[where], gradient[where])


def check_reach(key: str, part: Moving, rates: Tensor, spans: Mapping[str, range], embeddings: Iterable[str]) -> None:
    """StageError when no gradient reaches one of these embeddings' vectors in an encoder that trains it."""
    missed = part.index[(part.gradient.abs().amax(dim=1) == 0) & (rates[part.index] > 0)].tolist()
    for name in sorted(embeddings):
        span = spans[name]
        lost = [row - span.start for row in missed if row in span]
        if lost:
            raise StageError(
                f"no gradient reaches vector {', '.join(map(str, lost))} of {name!r} in {key}: the caption is "
                "cut off before it, or nothing of the model listens to this encoder"
            )


class Shares:
    """Runs of embeddings next to one another, as many as there are processes; a process alone owns every embedding."""

    def __init__(self, rows: Mapping[str, EmbeddingRows], processes: Processes = ALONE) -> None:
        """`rows` by encoder, of the same embeddings in the same order."""
        self.rows, self.processes = rows, processes
        self._blocks = {key: [_block(table, processes, owner) for owner in range(processes.count)]
                        for key, table in rows.items()}  # fmt: skip
        self.own = {key: blocks[processes.index] for key, blocks in self._blocks.items()}

    @property
    def several(self) -> bool:
        """Whether other processes own embeddings too."""
        return self.processes.count > 1

    def part(self, key: str, moving: Moving, rates: Tensor) -> tuple[Moving, Tensor]:
        """What this process moves of the rows that a step moves, and its part of their learning rates (rows,)."""
        if not self.several:
            return moving, rates
        mine = self._mine(key, moving.index)
        embeddings = tuple(
            embedding
            for embedding in moving.embeddings
            if self.rows[key].spans[embedding] and self._owns(key, embedding)
        )
        return Moving(embeddings, moving.index[mine], moving.values[mine], moving.gradient[mine]), rates[mine]

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
        """What the owners say of (encoder key, embedding), each in place of what the others have for it."""
        mine = [value if self._owns(*place) else 0.0 for place, value in values.items()]
        return dict(zip(values, self.processes.numbers(mine), strict=True))

    def _owns(self, key: str, embedding: str) -> bool:
        return self.own[key].start <= self.rows[key].spans[embedding].start < self.own[key].stop

    def collected(self, state: Any) -> Sequence[Any]:
        """The states of all processes, one after the other, in the main one; nothing in the others."""
        return self.processes.collected(_on_the_cpu(state)) if self.several else [state]


def _block(table: EmbeddingRows, processes: Processes, owner: int) -> slice:
    """The rows of one process's embeddings."""
    starts = [*(span.start for span in table.spans.values()), len(table)]
    first, last = (len(table.spans) * number // processes.count for number in (owner, owner + 1))
    return slice(starts[first], starts[last])


def _on_the_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: _on_the_cpu(one) for key, one in value.items()}
    return type(value)(_on_the_cpu(one) for one in value) if isinstance(value, (list, tuple)) else value


class RowStates:
    """An optimizer and, where one is asked for, an average for the rows of each encoder.

    With several processes all must call the same methods in the same order, but for `restore`.
    """

    def __init__(
        self, rows: Mapping[str, EmbeddingRows], optimizer: OptimizerOptions, ema: float | None, shares: Shares,
        rules: Mapping[str, RuleOf],
    ) -> None:  # fmt: skip
        """`ema` is the decay of the average; None keeps none, and an optimizer that has its own needs none.

        `rules` give the norm rule of an embedding in each encoder, for such an optimizer.
        """
        self.rows, self.shares = rows, shares
        self.optimizers: dict[str, RowOptimizer] = {
            key: row_optimizer(table, optimizer, shares.own[key], rules[key]) for key, table in rows.items()
        }
        self.averages: dict[str, Average] = {}
        if ema is not None and not optimizer.facts.averages_itself:
            self.averages = {key: Average(table.values[shares.own[key]], ema, rows=True) for key, table in rows.items()}
        self.averaged = bool(self.averages) or optimizer.facts.averages_itself  # not what is trained is to be used

    def move(self, parts: Mapping[str, Moving], clip: float, rates: Mapping[str, Tensor], factor: float) -> None:
        """Move these rows along `clip` times their gradients; `rates` (all rows,) times `factor` are the step sizes."""
        moved = {key: part for key, part in parts.items() if len(part.index)}
        for key, part in moved.items():
            own, speed = self.shares.part(key, part, rates[key][part.index])
            if len(own.index):
                self.optimizers[key].step(own.embeddings, own.index, own.values, own.gradient * clip, speed * factor)
        self.shares.tell({key: part.index for key, part in moved.items()})

    def average(
        self, key: str, index: Tensor, rules: Sequence[NormRule | None], statistics: NormStatistics, norms: Tensor
    ) -> None:
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

    def show(self, embeddings: Collection[str], use: bool) -> None:
        """Exchange all rows with their averages; schedule-free optimizers do so for `embeddings`."""
        if not self.averaged:
            return
        for key, optimizer in self.optimizers.items():
            optimizer.show(embeddings, use)
            if key in self.averages:
                self.averages[key].swap()
        self.shares.tell_all()

    def settle(self, embeddings: Sequence[str]) -> None:
        """From here on the rows of these embeddings are what is to be used of them: their average, where there is
        one.
        """
        if not self.averaged or not embeddings:
            return
        for key, optimizer in self.optimizers.items():
            optimizer.settle(embeddings)
            if key in self.averages:
                self.averages[key].settle(self.shares.places(key, self._index(key, embeddings)))
        self.shares.tell({key: self._index(key, embeddings) for key in self.rows})

    def _index(self, key: str, embeddings: Sequence[str]) -> Tensor:
        table = self.rows[key]
        return torch.tensor(table.index(embeddings), dtype=torch.long, device=table.values.device)

    def step_sizes(
        self, rates: Mapping[str, Mapping[str, float]], embeddings: Collection[str]
    ) -> dict[str, tuple[float, float]]:
        """For each embedding the largest step size of its encoders, and the largest multiple of a rate that was found.

        A step size is the learning rate (`rates` by embedding and encoder) times what Prodigy has found, 1 for others.
        """
        told = self.shares.numbers(
            {
                (key, embedding): self.optimizers[key].effective(embedding)
                for embedding in embeddings
                for key in rates[embedding]
            }
        )
        return {
            embedding: (
                max(rate * told[key, embedding] for key, rate in rates[embedding].items()),
                max(told[key, embedding] for key in rates[embedding]),
            )
            for embedding in embeddings
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
