"""Rows of embeddings in a step: learning rates, gradients, optimizer state and EMA weights, sharded or not."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..distributed import SINGLE_PROCESS, Processes
from ..embeddings.injection import ActiveRows, EmbeddingRows
from ..embeddings.norms import NormStatistics, apply_rules
from ..errors import StageError
from ..recipe.model import EmbeddingSpec
from ..recipe.options import LearningRate, NormRule, OptimizerOptions
from .ema import Average
from .row_optimizers import RowOptimizer, RuleOf, row_optimizer


def rate_for(rate: LearningRate | None, key: str) -> float | None:
    """The learning rate of one encoder in a setting, or None where it has none."""
    return rate.get(key) if isinstance(rate, Mapping) else rate


def row_rates(key: str, rows: EmbeddingRows, embeddings: Sequence[EmbeddingSpec], default: LearningRate) -> Tensor:
    """(rows,) learning rates of one encoder: the embedding's own, per encoder where it has a table, else the stage's.

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
            raise StageError(f"learning_rate has no number for {key}; add it, 0 freezes its vectors")
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
class StepRows:
    """The rows of one encoder that a step trains: their embeddings, indices, values and gradient."""

    embeddings: tuple[str, ...]
    index: Tensor
    values: Tensor
    gradient: Tensor


def rows_of_step(rows: ActiveRows, running: set[str], spans: Mapping[str, range], scale: float) -> StepRows:
    """Those of the active rows that belong to running embeddings, with their gradient divided by `scale`.

    The gradient is zeros where the rows did not affect the loss.
    """
    gradient = torch.zeros_like(rows.leaf) if rows.leaf.grad is None else rows.leaf.grad
    if scale != 1.0:
        gradient = gradient / scale
    values = rows.leaf.detach()
    if all(embedding in running for embedding in rows.embeddings):
        return StepRows(rows.embeddings, rows.index, values, gradient)
    keep = [embedding in running for embedding in rows.embeddings for _ in spans[embedding]]
    where = torch.tensor(keep, dtype=torch.bool, device=values.device)
    embeddings = tuple(embedding for embedding in rows.embeddings if embedding in running)
    return StepRows(embeddings, rows.index[where], values[where], gradient[where])


def missed_vectors(
    part: StepRows, rates: Tensor, spans: Mapping[str, range], embeddings: Iterable[str]
) -> dict[str, list[int]]:
    """The vectors of these embeddings, counted from 1, that get no gradient in an encoder that trains them."""
    missed = part.index[(part.gradient.abs().amax(dim=1) == 0) & (rates[part.index] > 0)].tolist()
    found = {name: [row - spans[name].start + 1 for row in missed if row in spans[name]] for name in embeddings}
    return {name: vectors for name, vectors in found.items() if vectors}


class Shards:
    """Contiguous shards of the embeddings, one for each process; a single process owns every embedding."""

    def __init__(self, rows: Mapping[str, EmbeddingRows], processes: Processes = SINGLE_PROCESS) -> None:
        """`rows` by encoder, of the same embeddings in the same order."""
        self.rows, self.processes = rows, processes
        self._blocks = {key: [_block(table, processes, owner) for owner in range(processes.count)]
                        for key, table in rows.items()}  # fmt: skip
        self.own = {key: blocks[processes.index] for key, blocks in self._blocks.items()}

    @property
    def sharded(self) -> bool:
        """Whether other processes own embeddings too."""
        return self.processes.count > 1

    def own_part(self, key: str, step_rows: StepRows, rates: Tensor) -> tuple[StepRows, Tensor]:
        """The rows of a step that this process owns, and their learning rates (rows,)."""
        if not self.sharded:
            return step_rows, rates
        mine = self._mine(key, step_rows.index)
        embeddings = tuple(
            embedding
            for embedding in step_rows.embeddings
            if self.rows[key].spans[embedding] and self._owns(key, embedding)
        )
        return StepRows(embeddings, step_rows.index[mine], step_rows.values[mine], step_rows.gradient[mine]), rates[
            mine
        ]

    def positions(self, key: str, index: Tensor) -> Tensor:
        """Positions of this process's rows within its shard."""
        return index if not self.sharded else index[self._mine(key, index)] - self.own[key].start

    def own_indices(self, key: str, index: Tensor) -> Tensor:
        """Positions in `index` of the rows that this process owns."""
        return self._mine(key, index).nonzero().flatten()

    def _mine(self, key: str, index: Tensor) -> Tensor:
        return (index >= self.own[key].start) & (index < self.own[key].stop)

    @torch.no_grad()
    def broadcast(self, index: Mapping[str, Tensor]) -> None:
        """Send these rows (encoder key to indices) from their owners to every process's table, bit for bit."""
        if not self.sharded or not index:
            return
        factors = []
        for key, rows in index.items():
            bits = self.rows[key].values[rows].view(torch.int32)
            factors.append(bits.masked_fill_(~self._mine(key, rows).unsqueeze(1), 0))
        # integers: the owner's bits, plus zeros
        flat = self.processes.sum(torch.cat([bits.flatten() for bits in factors]))
        parts = flat.split([bits.numel() for bits in factors])
        for (key, rows), bits, shape in zip(index.items(), parts, factors, strict=True):
            self.rows[key].values[rows] = bits.view_as(shape).view(torch.float32)

    def broadcast_all(self) -> None:
        """Send every row from its owner to every process's table."""
        for key, blocks in self._blocks.items():
            for owner, block in enumerate(blocks):
                self.processes.broadcast(self.rows[key].values[block], owner)

    def numbers(self, values: Mapping[tuple[str, str], float]) -> dict[tuple[str, str], float]:
        """Values by (encoder key, embedding), each from the process that owns the embedding."""
        mine = [value if self._owns(*which) else 0.0 for which, value in values.items()]
        return dict(zip(values, self.processes.sum_numbers(mine), strict=True))

    def _owns(self, key: str, embedding: str) -> bool:
        return self.own[key].start <= self.rows[key].spans[embedding].start < self.own[key].stop

    def gather(self, state: Any) -> Sequence[Any]:
        """The states of all processes, in order, in the main one; nothing in the others."""
        return self.processes.gather_to_main(_on_the_cpu(state)) if self.sharded else [state]


def _block(table: EmbeddingRows, processes: Processes, owner: int) -> slice:
    """The rows of one process's shard."""
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
    """An optimizer and, with `ema`, EMA weights for the rows of each encoder.

    With several processes all must call the same methods in the same order, except `restore`.
    """

    def __init__(
        self, rows: Mapping[str, EmbeddingRows], optimizer: OptimizerOptions, ema: float | None, shards: Shards,
        rules: Mapping[str, RuleOf],
    ) -> None:  # fmt: skip
        """`ema` is the decay; None keeps no EMA weights, nor does an optimizer with an average of its own.

        `rules` give the norm rule of an embedding in each encoder, for such an optimizer.
        """
        self.rows, self.shards = rows, shards
        self.optimizers: dict[str, RowOptimizer] = {
            key: row_optimizer(table, optimizer, shards.own[key], rules[key]) for key, table in rows.items()
        }
        self.averages: dict[str, Average] = {}
        if ema is not None and not optimizer.facts.averages_itself:
            self.averages = {key: Average(table.values[shards.own[key]], ema, rows=True) for key, table in rows.items()}
        # whether the exported vectors differ from the trained ones
        self.averaged = bool(self.averages) or optimizer.facts.averages_itself

    def step(self, parts: Mapping[str, StepRows], clip: float, rates: Mapping[str, Tensor], factor: float) -> None:
        """One optimizer step of these rows: gradients times `clip`, `rates` (all rows,) times `factor`."""
        trained = {key: part for key, part in parts.items() if len(part.index)}
        for key, part in trained.items():
            own, speed = self.shards.own_part(key, part, rates[key][part.index])
            if len(own.index):
                self.optimizers[key].step(own.embeddings, own.index, own.values, own.gradient * clip, speed * factor)
        self.shards.broadcast({key: part.index for key, part in trained.items()})

    def average(
        self, key: str, index: Tensor, rules: Sequence[NormRule | None], statistics: NormStatistics, norms: Tensor
    ) -> None:
        """Update the EMA weights of rows after a step and apply the norm rules to them: a mean has a smaller norm.

        `rules` and `norms` (for the rule `initial`) are of the rows of `index`.
        """
        if key not in self.averages:
            return
        average, positions = self.averages[key], self.shards.positions(key, index)
        average.update(positions)
        mine = self.shards.own_indices(key, index)
        own = [rules[number] for number in mine.tolist()]
        if any(rule is not None for rule in own):
            average.shadow[positions] = apply_rules(average.shadow[positions], own, statistics, norms[mine])

    @torch.no_grad()
    def load_ema(self, key: str, index: Tensor, average: Mapping[str, Tensor]) -> None:
        """Start the EMA weights of the rows `index`, whose values were loaded: with these values, or from the stored
        state `average` of these rows."""
        if key not in self.averages:
            return
        own, mine, positions = (
            self.averages[key],
            self.shards.own_indices(key, index),
            self.shards.positions(key, index),
        )
        values = average.get("shadow", self.rows[key].values[index]).to(own.shadow)
        own.shadow[positions] = values[mine]
        own.counts[positions] = average["counts"].to(own.counts)[mine] if average else 0.0

    def use_ema(self, embeddings: Collection[str], use: bool) -> None:
        """Swap all rows and their EMA weights; schedule-free optimizers swap those of `embeddings`."""
        if not self.averaged:
            return
        for key, optimizer in self.optimizers.items():
            optimizer.use_average(embeddings, use)
            if key in self.averages:
                self.averages[key].swap()
        self.shards.broadcast_all()

    def finish(self, embeddings: Sequence[str]) -> None:
        """End the training of these embeddings: their rows become the EMA weights, if there are any."""
        if not self.averaged or not embeddings:
            return
        for key, optimizer in self.optimizers.items():
            optimizer.settle(embeddings)
            if key in self.averages:
                self.averages[key].settle(self.shards.positions(key, self._index(key, embeddings)))
        self.shards.broadcast({key: self._index(key, embeddings) for key in self.rows})

    def _index(self, key: str, embeddings: Sequence[str]) -> Tensor:
        table = self.rows[key]
        return torch.tensor(table.index(embeddings), dtype=torch.long, device=table.values.device)

    def learning_rates_of(
        self, rates: Mapping[str, Mapping[str, float]], embeddings: Collection[str]
    ) -> dict[str, tuple[float, float]]:
        """For each embedding the largest learning rate of its encoders, and the largest factor that was found.

        The factor is Prodigy's `d`, 1 for others; it multiplies the learning rate (`rates` by embedding and encoder).
        """
        factors = self.shards.numbers(
            {
                (key, embedding): self.optimizers[key].effective(embedding)
                for embedding in embeddings
                for key in rates[embedding]
            }
        )
        return {
            embedding: (
                max(rate * factors[key, embedding] for key, rate in rates[embedding].items()),
                max(factors[key, embedding] for key in rates[embedding]),
            )
            for embedding in embeddings
        }

    def state(self) -> dict[str, Any]:
        """Optimizer state and EMA weights of all rows, by encoder; with several processes only in the main one."""
        parts = self.shards.gather({
            "optimizers": {key: one.state() for key, one in self.optimizers.items()},
            "averages": {key: one.state() for key, one in self.averages.items()},
        })  # fmt: skip
        if not parts:
            return {}
        return {
            kind: {key: one.merge_shards([part[kind][key] for part in parts]) for key, one in those.items()}
            for kind, those in (("optimizers", self.optimizers), ("averages", self.averages))
        }

    def restore(self, tree: Mapping[str, Any]) -> None:
        """Continue from the state of all rows. Raises StageError when it does not fit."""
        for key, optimizer in self.optimizers.items():
            optimizer.restore(tree["optimizers"][key])
        for key, average in self.averages.items():
            average.restore({name: values[self.shards.own[key]] for name, values in tree["averages"][key].items()})
