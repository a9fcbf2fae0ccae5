"""The words' side of a training step: gradients checked and clipped, rows moved, norms kept, stops obeyed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import StageError
from ..recipe.model import Word
from ..words.injection import ActiveRows, Injection
from ..words.norms import NormStatistics, apply_rules
from .clock import Clock
from .ema import Average, Shown
from .guard import Guard
from .packing import copy_into, pack, unpack
from .stops import Stops
from .trained import State
from .word_optimizers import row_optimizer
from .word_rates import Moving, check_reach, moving, row_rates


@dataclass(frozen=True, eq=False)
class WordSettings:
    """How words are moved: rate (one, or one an encoder), optimizer, the rate's factor a step, clipping, norm rule,
    and the decay of an average of them."""

    learning_rate: float | Mapping[str, float]
    optimizer: Mapping[str, Any]
    factor: Callable[[int], float] = lambda step: 1.0
    clip_norm: float = 1.0
    preserve_norm: Any = None
    ema: float | None = None


class WordTrainer:
    """Trains the rows of the words that are to be trained; all others are read, never written."""

    name = "words"

    def __init__(
        self,
        injection: Injection,
        words: Sequence[Word],
        statistics: Mapping[str, NormStatistics],
        settings: WordSettings,
        start: Mapping[str, Tensor] | None = None,
        recorded: Mapping[str, int] | None = None,
        guard: Guard | None = None,
    ) -> None:
        """`start` has the rows whose norms the rule `initial` keeps, by encoder; else those the stage begins with.

        `recorded` is for `Stops`; `guard` looks at every step.
        """
        self.injection, self.statistics, self.settings = injection, statistics, settings
        self.words = {word.placeholder: word for word in words if word.train}
        self.stops = Stops({name: word.stop_after for name, word in self.words.items()}, recorded)
        self.guard = guard
        self.stopped_at: dict[str, int] = {}
        self.reached: set[str] = set()
        self.start = start or {key: rows.values.clone() for key, rows in injection.rows.items()}
        self.rates = {key: row_rates(key, rows, words, settings.learning_rate) for key, rows in injection.rows.items()}
        self.word_rates = self._word_rates()
        self.optimizers = {key: row_optimizer(rows, settings.optimizer) for key, rows in injection.rows.items()}
        self.averages = _averages(injection, settings.ema)
        self._active: dict[str, ActiveRows] = {}
        self._running: set[str] = set()
        self._moving: dict[str, Moving] = {}
        self._rate = 0.0
        self._shown = Shown(self._exchange)

    @property
    def moves_text(self) -> bool:
        return bool(self._running)

    def begin(self, words: Sequence[str], clock: Clock) -> dict[str, ActiveRows]:
        """Take the rows of a step's words into the model; those still in training collect a gradient."""
        self._running = self.running(words, clock)
        self._active = self.injection.take(words, train=bool(self._running))
        return self._active

    def running(self, words: Iterable[str], clock: Clock) -> set[str]:
        """Which of these words are still in training; all words whose stop has come are noted with the step."""
        self._stop(self.stops.due(clock), clock.step)
        return {word for word in words if word in self.words and word not in self.stopped_at}

    def _stop(self, words: Iterable[str], step: int) -> None:
        over = [word for word in words if word not in self.stopped_at]
        self.stopped_at |= dict.fromkeys(over, step)
        self._settle(over)

    def leaves(self) -> Sequence[Tensor]:
        return [rows.leaf for rows in self._active.values()] if self._running else []

    def gradient_norm(self, scale: float) -> float:
        """Norm of the running words' gradient. Raises StageError for a gradient that misses a vector."""
        spans = {key: rows.spans for key, rows in self.injection.rows.items()}
        self._moving = {key: moving(rows, self._running, spans[key], scale) for key, rows in self._active.items()}
        if not self._running:
            return 0.0
        total = float(torch.stack([part.gradient.norm() for part in self._moving.values()]).norm())
        new = self._running - self.reached
        if new and math.isfinite(total):
            for key, part in self._moving.items():
                check_reach(key, part, self.rates[key], spans[key], new)
            self.reached |= new
        return total

    def step(self, norm: float, clock: Clock) -> None:
        """Move the running words of this batch."""
        clip = min(1.0, self.settings.clip_norm / (norm + 1e-6)) if self.settings.clip_norm else 1.0
        factor = self.settings.factor(clock.step)
        for key, part in self._moving.items():
            if len(part.index):
                self._move(key, part, clip, self.rates[key][part.index] * factor)
        self._rate = factor * max((self.step_size(word) for word in self._running), default=0.0)
        if self.guard is not None:
            prodigy = self.settings.optimizer["kind"].startswith("prodigy")
            for word in self._running:
                self.guard.step_size(word, factor * self.step_size(word), self.found(word) if prodigy else None)
        self._stop(self.stops.counted(self._running), clock.step + 1)
        self.clear()

    def clear(self) -> None:
        self._moving = {}
        for rows in self._active.values():
            rows.leaf.grad = None

    def learning_rates(self) -> dict[str, float]:
        return {self.name: self._rate}

    def state(self) -> State:
        rows = {key: rows.values for key, rows in self.injection.rows.items()}
        optimizers = {key: one.state() for key, one in self.optimizers.items()}
        averages = {key: average.state() for key, average in self.averages.items()}
        facts = {"stopped_at": self.stopped_at, "reached": sorted(self.reached), "own_steps": self.stops.state()}
        return pack({"rows": rows, "optimizers": optimizers, "averages": averages, **facts})

    def restore(self, state: State) -> None:
        tree = unpack(state)
        if tree["rows"].keys() != self.optimizers.keys():
            raise StageError(
                f"the checkpoint has words for {', '.join(tree['rows'])}, not {', '.join(self.optimizers)}"
            )
        for key, values in tree["rows"].items():
            copy_into(self.injection.rows[key].values, values, f"words of {key}")
            self.optimizers[key].restore(tree["optimizers"][key])
            if key in self.averages:
                self.averages[key].restore(tree["averages"][key])
        self.stopped_at, self.reached = tree["stopped_at"], set(tree["reached"])
        self.stops.restore(tree["own_steps"])

    def averaged(self) -> AbstractContextManager[None]:
        """The tables have the words that are to be used: the average where one is kept, else the present ones."""
        return self._shown.shown()

    def finish(self) -> None:
        """The words that are to be used stay."""
        self._shown.show(True)

    def _exchange(self, use: bool) -> None:
        words = self.words.keys() - self.stopped_at.keys()
        for key, optimizer in self.optimizers.items():
            optimizer.show(words, use)
            if key in self.averages:
                self.averages[key].swap()

    def _settle(self, words: Sequence[str]) -> None:
        """Words that stop now: from here on they are what is to be used of them, and the rest learns around that."""
        if not words:
            return
        for key, rows in self.injection.rows.items():
            self.optimizers[key].show(words, True)
            if key in self.averages:
                for word in words:
                    span = rows.spans[word]
                    self.averages[key].settle(slice(span.start, span.stop))

    def step_size(self, word: str) -> float:
        """The largest step size of a word's encoders: its learning rate, times what Prodigy has found."""
        return max(rate * self.optimizers[key].effective(word) for key, rate in self.word_rates[word].items())

    def found(self, word: str) -> float:
        """The largest multiple of its learning rate that an optimizer has found for a word."""
        return max(self.optimizers[key].effective(word) for key in self.word_rates[word])

    def rule_of(self, word: str) -> Any:
        """The norm rule of a word: its own, else the stage's."""
        own = self.words[word].preserve_norm
        return self.settings.preserve_norm if own is None else own

    def _word_rates(self) -> dict[str, dict[str, float]]:
        """The learning rate of each word in the encoders in which it has rows."""
        rates = {key: rates.tolist() for key, rates in self.rates.items()}
        spans = {key: rows.spans for key, rows in self.injection.rows.items()}
        return {
            word: {key: rates[key][spans[key][word].start] for key in rates if spans[key][word]} for word in self.words
        }

    def _move(self, key: str, part: Moving, clip: float, rates: Tensor) -> None:
        rows = self.injection.rows[key]
        moved = self.optimizers[key].step(part.words, part.index, part.values, part.gradient * clip, rates)
        rules = [self.rule_of(word) for word in part.words for _ in rows.spans[word]]
        if any(rule is not None for rule in rules):
            rows.values[part.index] = apply_rules(moved, rules, self.statistics[key], self.start[key][part.index])
        if key in self.averages:
            self.averages[key].update(part.index)
        if self.guard is not None:
            moves = self.rates[key][part.index] > 0
            after, usual = rows.values[part.index], self.statistics[key]
            self.guard.rows(key, len(rows), part.index, moves, part.values, after, part.words, rows.spans, usual)


def _averages(injection: Injection, decay: float | None) -> dict[str, Average]:
    if decay is None:
        return {}
    return {key: Average(rows.values, decay, rows=True) for key, rows in injection.rows.items()}
