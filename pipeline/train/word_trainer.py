"""The words' side of a training step: gradients checked and clipped, rows moved, norms kept, stops obeyed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import StageError
from ..recipe.model import Word
from ..words.injection import ActiveRows, Injection
from ..words.norms import NormStatistics, apply_rule
from .clock import Clock, stopped
from .lazy_adamw import LazyAdamW
from .packing import copy_into, pack, unpack
from .trained import State
from .word_rates import check_reach, row_rates


@dataclass(frozen=True, eq=False)
class WordSettings:
    """How words are moved: rate (one, or one an encoder), optimizer, the rate's factor a step, clipping, norm rule."""

    learning_rate: float | Mapping[str, float]
    optimizer: Mapping[str, Any]
    factor: Callable[[int], float] = lambda step: 1.0
    clip_norm: float = 1.0
    preserve_norm: Any = None


@dataclass(frozen=True, eq=False)
class Moving:
    """The rows of one encoder that a step moves: whose they are, their numbers, values and gradient."""

    words: tuple[str, ...]
    index: Tensor
    values: Tensor
    gradient: Tensor


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
    ) -> None:
        """`start` has the rows whose norms the rule `initial` keeps, by encoder; else those the stage begins with."""
        self.injection, self.statistics, self.settings = injection, statistics, settings
        self.words = {word.placeholder: word for word in words if word.train}
        self.stopped_at: dict[str, int] = {}
        self.reached: set[str] = set()
        self.start = start or {key: rows.values.clone() for key, rows in injection.rows.items()}
        self.rates = {key: row_rates(key, rows, words, settings.learning_rate) for key, rows in injection.rows.items()}
        self.optimizers = {key: _adam(rows.values, settings.optimizer) for key, rows in injection.rows.items()}
        self.highest = {name: self._highest(name) for name in self.words}
        self._active: dict[str, ActiveRows] = {}
        self._running: set[str] = set()
        self._moving: dict[str, Moving] = {}
        self._rate = 0.0

    @property
    def moves_text(self) -> bool:
        return bool(self._running)

    def begin(self, words: Sequence[str], clock: Clock) -> dict[str, ActiveRows]:
        """Take the rows of a step's words into the model; those still in training collect a gradient."""
        self._running = self.running(words, clock)
        self._active = self.injection.take(words, train=bool(self._running))
        return self._active

    def running(self, words: Iterable[str], clock: Clock) -> set[str]:
        """Which of these words are still in training; those whose stop has come are noted with the step."""
        going = [word for word in words if word in self.words and word not in self.stopped_at]
        over = {word for word in going if stopped(self.words[word].stop_after, clock)}
        self.stopped_at |= dict.fromkeys(over, clock.step)
        return set(going) - over

    def gradient_norm(self, scale: float) -> float:
        """Norm of the running words' gradient. Raises StageError for a gradient that misses a vector."""
        self._moving = {key: self._part(key, rows, scale) for key, rows in self._active.items()}
        if not self._running:
            return 0.0
        total = float(torch.stack([part.gradient.norm() for part in self._moving.values()]).norm())
        new = self._running - self.reached
        if new and math.isfinite(total):
            for key, part in self._moving.items():
                check_reach(key, part.index, part.gradient, self.rates[key], self.injection.rows[key].spans, new)
            self.reached |= new
        return total

    def step(self, norm: float, clock: Clock) -> None:
        """Move the running words of this batch."""
        clip = min(1.0, self.settings.clip_norm / (norm + 1e-6)) if self.settings.clip_norm else 1.0
        factor = self.settings.factor(clock.step)
        for key, part in self._moving.items():
            if len(part.index):
                self._move(key, part, clip, self.rates[key][part.index] * factor)
        self._rate = factor * max((self.highest[word] for word in self._running), default=0.0)
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
        facts = {"stopped_at": self.stopped_at, "reached": sorted(self.reached)}
        return pack({"rows": rows, "optimizers": optimizers, **facts})

    def restore(self, state: State) -> None:
        tree = unpack(state)
        if tree["rows"].keys() != self.optimizers.keys():
            raise StageError(
                f"the checkpoint has words for {', '.join(tree['rows'])}, not {', '.join(self.optimizers)}"
            )
        for key, values in tree["rows"].items():
            copy_into(self.injection.rows[key].values, values, f"words of {key}")
            self.optimizers[key].restore(tree["optimizers"][key])
        self.stopped_at, self.reached = tree["stopped_at"], set(tree["reached"])

    @contextmanager
    def averaged(self) -> Iterator[None]:
        yield

    def finish(self) -> None:
        """The rows in the tables are the words."""

    def _highest(self, word: str) -> float:
        spans = {key: rows.spans[word] for key, rows in self.injection.rows.items()}
        return max(float(self.rates[key][span.start]) for key, span in spans.items())

    def _part(self, key: str, rows: ActiveRows, scale: float) -> Moving:
        """Which of the active rows are to move, and their gradient: zeros where nothing of the model listened."""
        gradient = torch.zeros_like(rows.leaf) if rows.leaf.grad is None else rows.leaf.grad
        if scale != 1.0:
            gradient = gradient / scale
        values = rows.leaf.detach()
        if all(word in self._running for word in rows.words):
            return Moving(rows.words, rows.index, values, gradient)
        spans = self.injection.rows[key].spans
        keep = [word in self._running for word in rows.words for _ in spans[word]]
        where = torch.tensor(keep, dtype=torch.bool, device=values.device)
        words = tuple(word for word in rows.words if word in self._running)
        return Moving(words, rows.index[where], values[where], gradient[where])

    def _move(self, key: str, part: Moving, clip: float, rates: Tensor) -> None:
        moved = self.optimizers[key].step(part.index, part.values, part.gradient * clip, rates)
        rule = self.settings.preserve_norm
        if rule is not None:
            kept = apply_rule(moved, rule, self.statistics[key], self.start[key][part.index])
            self.injection.rows[key].values[part.index] = kept


def _adam(values: Tensor, options: Mapping[str, Any]) -> LazyAdamW:
    betas = (float(options["betas"][0]), float(options["betas"][1]))
    return LazyAdamW(values, betas=betas, eps=float(options["eps"]), weight_decay=float(options["weight_decay"]))
