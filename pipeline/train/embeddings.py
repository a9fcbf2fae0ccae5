"""How a train stage says that embeddings are moved."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..distributed import ALONE, Processes
from ..embeddings.injection import ActiveRows, Injection
from ..embeddings.norms import NormStatistics, apply_rule, apply_rules
from ..errors import StageError
from ..recipe.intervals import Clock, Stops
from ..recipe.model import EmbeddingSpec
from ..recipe.options import LearningRate, NormRule, OptimizerOptions, TrainOptions
from .ema import Shown
from .guard import Guard
from .optimizers import Rule, rate_factor
from .packing import copy_into, pack, unpack
from .row_states import Moving, RowStates, Shares, check_reach, embedding_rates, moving, row_rates
from .trainable import State


@dataclass(frozen=True, eq=False)
class EmbeddingSettings:
    """How embeddings are moved: rate (one, or one an encoder), optimizer, the rate's factor a step, clipping, norm
    rule, and the decay of an average of them."""

    learning_rate: LearningRate
    optimizer: OptimizerOptions
    factor: Callable[[int], float] = lambda step: 1.0
    clip_norm: float = 1.0
    preserve_norm: NormRule | None = None
    ema: float | None = None


def embedding_settings(options: TrainOptions) -> EmbeddingSettings:
    """The settings of a train stage's embeddings."""
    factor = partial(rate_factor, options.schedule, steps=options.steps, warmup_steps=options.warmup_steps)
    return EmbeddingSettings(
        options.learning_rate, options.optimizer, factor, options.clip_norm, options.preserve_norm, options.ema
    )


class EmbeddingTrainer:
    """Trains the rows of the embeddings that are to be trained; all others are read, never written."""

    name = "embeddings"

    def __init__(
        self,
        injection: Injection,
        embeddings: Sequence[EmbeddingSpec],
        statistics: Mapping[str, NormStatistics],
        settings: EmbeddingSettings,
        norms: Mapping[str, Tensor] | None = None,
        recorded: Mapping[str, int] | None = None,
        sharing: Processes = ALONE,
    ) -> None:
        """`norms`, (rows,) by encoder, are those that the rule `initial` keeps; else those the stage begins with.

        `recorded` is for `Stops`. The processes that are `sharing` the embeddings have
        each the optimizer's state and the averages of some.
        """
        self.injection, self.statistics, self.settings = injection, statistics, settings
        self.embeddings = {embedding.placeholder: embedding for embedding in embeddings if embedding.train}
        self.stops = Stops({name: embedding.stop_after for name, embedding in self.embeddings.items()}, recorded)
        self.stopped_at: dict[str, int] = {}
        self.reached: set[str] = set()
        self.norms = norms or {key: rows.values.norm(dim=1) for key, rows in injection.rows.items()}
        self.rates = {
            key: row_rates(key, rows, embeddings, settings.learning_rate) for key, rows in injection.rows.items()
        }
        self.embedding_rates = embedding_rates(self.rates, injection.rows, self.embeddings)
        shares = Shares(injection.rows, sharing)
        rules = {key: partial(self._norm_rule, key) for key in injection.rows}
        self.states = RowStates(injection.rows, settings.optimizer, settings.ema, shares, rules)
        self._active: dict[str, ActiveRows] = {}
        self._running: tuple[str, ...] = ()  # in the order of the run's embeddings: processes must all have the same
        self._moving: dict[str, Moving] = {}
        self._rate = 0.0
        self._shown = Shown(self._exchange)

    @property
    def sharded(self) -> bool:
        return self.states.shares.several

    @property
    def trains_text(self) -> bool:
        return bool(self._running)

    def begin(self, embeddings: Sequence[str], clock: Clock) -> dict[str, ActiveRows]:
        """Take the rows of a step's embeddings into the model; those still in training collect a gradient."""
        self._running = self.running(embeddings, clock)
        self._active = self.injection.take(embeddings, train=bool(self._running))
        return self._active

    def running(self, embeddings: Iterable[str], clock: Clock) -> tuple[str, ...]:
        """Which of these embeddings are still in training; all embeddings whose stop has come are noted with the
        step.
        """
        self._stop(self.stops.due(clock), clock.step)
        return tuple(
            embedding for embedding in embeddings if embedding in self.embeddings and embedding not in self.stopped_at
        )

    def _stop(self, embeddings: Iterable[str], step: int) -> None:
        over = [embedding for embedding in embeddings if embedding not in self.stopped_at]
        self.stopped_at |= dict.fromkeys(over, step)
        self.states.settle(over)

    def leaves(self) -> Sequence[Tensor]:
        return [rows.leaf for rows in self._active.values()] if self._running else []

    def gradient_norm(self, scale: float) -> float:
        """Norm of the running embeddings' gradient. Raises StageError for a gradient that misses a vector."""
        running = set(self._running)
        spans = {key: rows.spans for key, rows in self.injection.rows.items()}
        self._moving = {key: moving(rows, running, spans[key], scale) for key, rows in self._active.items()}
        if not self._running:
            return 0.0
        total = float(torch.stack([part.gradient.norm() for part in self._moving.values()]).norm())
        new = running - self.reached
        if new and math.isfinite(total):
            for key, part in self._moving.items():
                check_reach(key, part, self.rates[key], spans[key], new)
            self.reached |= new
        return total

    def step(self, norm: float, clock: Clock, guard: Guard | None = None) -> None:
        """Move the running embeddings of this batch."""
        clip = min(1.0, self.settings.clip_norm / (norm + 1e-6)) if self.settings.clip_norm else 1.0
        factor = self.settings.factor(clock.step)
        self.states.move(self._moving, clip, self.rates, factor)
        for key, part in self._moving.items():
            if len(part.index):
                self._moved(key, part, guard)
        sizes = self.states.step_sizes(self.embedding_rates, self._running)
        self._rate = factor * max((size for size, _ in sizes.values()), default=0.0)
        if guard is not None:
            adaptive = self.settings.optimizer.facts.adaptive
            for embedding, (size, found) in sizes.items():
                guard.step_size(embedding, factor * size, found if adaptive else None)
        self._stop(self.stops.counted(self._running), clock.step + 1)
        self.clear()

    def clear(self) -> None:
        self._moving = {}
        for rows in self._active.values():
            rows.leaf.grad = None

    def learning_rates(self) -> dict[str, float]:
        return {self.name: self._rate}

    def state(self) -> State:
        states = self.states.state()
        rows = {key: rows.values for key, rows in self.injection.rows.items()} if states else {}
        facts = {"stopped_at": self.stopped_at, "reached": sorted(self.reached), "own_steps": self.stops.state()}
        return pack({"rows": rows, **states, **facts})

    def restore(self, state: State) -> None:
        tree = unpack(state)
        if tree["rows"].keys() != self.rates.keys():
            raise StageError(
                f"the checkpoint has embeddings for {', '.join(tree['rows'])}, not {', '.join(self.rates)}"
            )
        for key, values in tree["rows"].items():
            copy_into(self.injection.rows[key].values, values, f"embeddings of {key}")
        self.states.restore(tree)
        self.stopped_at, self.reached = tree["stopped_at"], set(tree["reached"])
        self.stops.restore(tree["own_steps"])

    def averaged(self) -> AbstractContextManager[None]:
        """The tables have the embeddings that are to be used: the average where one is kept, else the present ones."""
        return self._shown.shown()

    def finish(self) -> None:
        """The embeddings that are to be used stay."""
        self._shown.show(True)

    def _exchange(self, use: bool) -> None:
        self.states.show([embedding for embedding in self.embeddings if embedding not in self.stopped_at], use)

    def rule_of(self, embedding: str) -> NormRule | None:
        """The norm rule of an embedding: its own, else the stage's."""
        own = self.embeddings[embedding].preserve_norm
        return self.settings.preserve_norm if own is None else own

    def _norm_rule(self, key: str, embedding: str, shown: bool) -> Rule | None:
        """The norm rule of an embedding as a function of its rows in one encoder; None where they are free.

        `spread` goes a little way in each step, and none where the embedding is `shown`.
        """
        rule, span = self.rule_of(embedding), self.injection.rows[key].spans[embedding]
        if rule is None or (shown and rule == "spread"):
            return None
        norms = self.norms[key][span.start : span.stop]
        return partial(apply_rule, rule=rule, statistics=self.statistics[key], initial=norms)

    def _moved(self, key: str, part: Moving, guard: Guard | None) -> None:
        """What follows when rows have moved: their norms, their average, the guard's look."""
        rows = self.injection.rows[key]
        rules = [self.rule_of(embedding) for embedding in part.embeddings for _ in rows.spans[embedding]]
        norms, usual = self.norms[key][part.index], self.statistics[key]
        if any(rule is not None for rule in rules) and not self.settings.optimizer.facts.averages_itself:
            rows.values[part.index] = apply_rules(rows.values[part.index], rules, usual, norms)
        reached = [None if rule == "spread" else rule for rule in rules]  # which goes a little way in each step
        self.states.average(key, part.index, reached, usual, norms)
        if guard is not None:
            moves = self.rates[key][part.index] > 0
            after = rows.values[part.index]
            guard.rows(key, len(rows), part.index, moves, part.values, after, part.embeddings, rows.spans, usual)
