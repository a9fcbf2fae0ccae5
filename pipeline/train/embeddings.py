"""Trains the embeddings of a train stage."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..distributed import SINGLE_PROCESS, Processes
from ..embeddings.injection import ActiveRows, Injection
from ..embeddings.norms import NormStatistics, apply_rule, apply_rules
from ..errors import StageError
from ..recipe.intervals import Clock, Stops
from ..recipe.model import EmbeddingSpec
from ..recipe.options import LearningRate, NormRule, OptimizerOptions, TrainOptions
from .ema import EmaSwitch
from .guard import Guard
from .optimizers import Rule, schedule_factor
from .packing import copy_into, pack, unpack
from .row_states import RowStates, Shards, StepRows, embedding_rates, missed_vectors, row_rates, rows_of_step
from .trainable import State


@dataclass(frozen=True, eq=False)
class EmbeddingSettings:
    """Learning rate (one, or one per encoder), optimizer, schedule factor per step, clipping, norm rule, EMA decay."""

    learning_rate: LearningRate
    optimizer: OptimizerOptions
    factor: Callable[[int], float] = lambda step: 1.0
    clip_norm: float = 1.0
    preserve_norm: NormRule | None = None
    ema: float | None = None


def embedding_settings(options: TrainOptions) -> EmbeddingSettings:
    """The settings of a train stage's embeddings."""
    factor = partial(schedule_factor, options.schedule, steps=options.steps, warmup_steps=options.warmup_steps)
    return EmbeddingSettings(
        options.learning_rate, options.optimizer, factor, options.clip_norm, options.preserve_norm, options.ema
    )


class EmbeddingTrainer:
    """Trains the rows of the embeddings with `train = true`; all others are only read."""

    name = "embeddings"

    def __init__(
        self,
        injection: Injection,
        embeddings: Sequence[EmbeddingSpec],
        statistics: Mapping[str, NormStatistics],
        settings: EmbeddingSettings,
        norms: Mapping[str, Tensor] | None = None,
        recorded: Mapping[str, int] | None = None,
        sharing: Processes = SINGLE_PROCESS,
    ) -> None:
        """`norms`, (rows,) by encoder, are those of the rule `initial`; by default those at the start of the stage.

        `recorded` is for `Stops`. Over the processes `sharing` the optimizer state and EMA weights are sharded.
        """
        self.injection, self.statistics, self.settings = injection, statistics, settings
        self.embeddings = {embedding.placeholder: embedding for embedding in embeddings if embedding.train}
        self.stops = Stops({name: embedding.stop_after for name, embedding in self.embeddings.items()}, recorded)
        self.stopped_at: dict[str, int] = {}
        self.reached: set[str] = set()
        self.missed: dict[str, dict[str, list[int]]] = {}
        self.norms = norms or {key: rows.values.norm(dim=1) for key, rows in injection.rows.items()}
        self.rates = {
            key: row_rates(key, rows, embeddings, settings.learning_rate) for key, rows in injection.rows.items()
        }
        self.embedding_rates = embedding_rates(self.rates, injection.rows, self.embeddings)
        shards = Shards(injection.rows, sharing)
        rules = {key: partial(self._norm_rule, key) for key in injection.rows}
        self.states = RowStates(injection.rows, settings.optimizer, settings.ema, shards, rules)
        self._active: dict[str, ActiveRows] = {}
        self._running: tuple[str, ...] = ()  # in the order of the run's embeddings, the same in all processes
        self._step_rows: dict[str, StepRows] = {}
        self._learning_rate = 0.0
        self._switch = EmaSwitch(self._exchange)

    @property
    def sharded(self) -> bool:
        return self.states.shards.sharded

    @property
    def trains_text(self) -> bool:
        return bool(self._running)

    def begin(self, embeddings: Sequence[str], clock: Clock) -> dict[str, ActiveRows]:
        """Activate the rows of a step's embeddings in the model; those that are still trained get a gradient."""
        self._running = self.running(embeddings, clock)
        self._active = self.injection.take(embeddings, train=bool(self._running))
        return self._active

    def running(self, embeddings: Iterable[str], clock: Clock) -> tuple[str, ...]:
        """Which of these embeddings are still trained; records the step of all that have reached stop_after."""
        self._stop(self.stops.due(clock), clock.step)
        return tuple(
            embedding for embedding in embeddings if embedding in self.embeddings and embedding not in self.stopped_at
        )

    def _stop(self, embeddings: Iterable[str], step: int) -> None:
        over = [embedding for embedding in embeddings if embedding not in self.stopped_at]
        self.stopped_at |= dict.fromkeys(over, step)
        self.states.finish(over)

    def leaves(self) -> Sequence[Tensor]:
        return [rows.leaf for rows in self._active.values()] if self._running else []

    def gradient_norm(self, scale: float) -> float:
        """Norm of the running embeddings' gradient.

        `missed` are then the vectors without one, by encoder and embedding, of embeddings that no step has reached.
        """
        running = set(self._running)
        spans = {key: rows.spans for key, rows in self.injection.rows.items()}
        self._step_rows = {key: rows_of_step(rows, running, spans[key], scale) for key, rows in self._active.items()}
        self.missed = {}
        if not self._running:
            return 0.0
        total = float(torch.stack([part.gradient.norm() for part in self._step_rows.values()]).norm())
        new = running - self.reached
        if new and math.isfinite(total):
            missed = {
                key: missed_vectors(part, self.rates[key], spans[key], new) for key, part in self._step_rows.items()
            }
            self.missed = {key: vectors for key, vectors in missed.items() if vectors}
            self.reached |= new - {name for vectors in self.missed.values() for name in vectors}
        return total

    def step(self, norm: float, clock: Clock, guard: Guard | None = None) -> None:
        """One optimizer step for the running embeddings of this batch."""
        clip = min(1.0, self.settings.clip_norm / (norm + 1e-6)) if self.settings.clip_norm else 1.0
        factor = self.settings.factor(clock.step)
        self.states.step(self._step_rows, clip, self.rates, factor)
        for key, part in self._step_rows.items():
            if len(part.index):
                self._after_step(key, part, guard)
        sizes = self.states.learning_rates_of(self.embedding_rates, self._running)
        self._learning_rate = factor * max((size for size, _ in sizes.values()), default=0.0)
        if guard is not None:
            adaptive = self.settings.optimizer.facts.adaptive
            for embedding, (size, found) in sizes.items():
                guard.check_learning_rate(embedding, factor * size, found if adaptive else None)
        self._stop(self.stops.counted(self._running), clock.step + 1)
        self.clear()

    def clear(self) -> None:
        self._step_rows = {}
        for rows in self._active.values():
            rows.leaf.grad = None

    def learning_rates(self) -> dict[str, float]:
        return {self.name: self._learning_rate}

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

    def ema_swapped(self) -> AbstractContextManager[None]:
        """Within it the tables have the vectors that are exported: EMA weights, if any, else the trained ones."""
        return self._switch.on()

    def finish(self) -> None:
        """End the training: the tables keep the vectors that are exported."""
        self._switch.set(True)

    def _exchange(self, use: bool) -> None:
        self.states.use_ema([embedding for embedding in self.embeddings if embedding not in self.stopped_at], use)

    def rule_of(self, embedding: str) -> NormRule | None:
        """The norm rule of an embedding: its own, else the stage's."""
        own = self.embeddings[embedding].preserve_norm
        return self.settings.preserve_norm if own is None else own

    def _norm_rule(self, key: str, embedding: str, average: bool) -> Rule | None:
        """The norm rule of an embedding as a function of its rows in one encoder; None if there is none.

        `spread` scales a little in each step, and not at all for the average that is exported (`average`).
        """
        rule, span = self._rule_in(key, embedding), self.injection.rows[key].spans[embedding]
        if rule is None or (average and rule == "spread"):
            return None
        norms = self.norms[key][span.start : span.stop]
        return partial(apply_rule, rule=rule, statistics=self.statistics[key], initial=norms)

    def _rule_in(self, key: str, embedding: str) -> NormRule | None:
        """The norm rule of an embedding in an encoder; none at learning rate 0, which freezes vectors."""
        return self.rule_of(embedding) if self.embedding_rates[embedding].get(key) else None

    def _after_step(self, key: str, part: StepRows, guard: Guard | None) -> None:
        """What follows an optimizer step of rows: norm rules, EMA weights, checks."""
        rows = self.injection.rows[key]
        rules = [self._rule_in(key, embedding) for embedding in part.embeddings for _ in rows.spans[embedding]]
        norms, usual = self.norms[key][part.index], self.statistics[key]
        if any(rule is not None for rule in rules) and not self.settings.optimizer.facts.averages_itself:
            rows.values[part.index] = apply_rules(rows.values[part.index], rules, usual, norms)
        reached = [None if rule == "spread" else rule for rule in rules]  # which scales a little in each step
        self.states.average(key, part.index, reached, usual, norms)
        if guard is not None:
            trained = self.rates[key][part.index] > 0
            after = rows.values[part.index]
            guard.check_rows(
                key,
                len(rows),
                part.index,
                trained,
                part.values,
                after,
                part.embeddings,
                rows.spans,
                usual,
                rows.outputs,
            )
