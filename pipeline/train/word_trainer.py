"""The words' side of a training step: gradients checked and clipped, rows moved, norms kept, stops obeyed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import StageError
from ..recipe.model import StopAfter, Word
from ..words.injection import ActiveRows, Injection
from ..words.norms import NormStatistics, apply_rule
from .lazy_adamw import LazyAdamW

SECONDS = {"seconds": 1.0, "minutes": 60.0, "hours": 3600.0}


@dataclass(frozen=True)
class Clock:
    """How far a train stage is: `step` counts from 0, `seconds` since its first step."""

    step: int
    steps: int
    steps_per_epoch: float
    seconds: float


def stopped(rule: StopAfter, clock: Clock) -> bool:
    """Whether a word has had all the training its recipe gives it."""
    if rule.unit == "never":
        return False
    if rule.unit in SECONDS:
        return clock.seconds >= rule.value * SECONDS[rule.unit]
    if rule.unit == "percent":
        return clock.step >= clock.steps * rule.value / 100
    return clock.step >= rule.value * (clock.steps_per_epoch if rule.unit == "epochs" else 1)


def _gradient(rows: ActiveRows) -> Tensor:
    """The gradient of the active rows; zeros where nothing of the model listened to them."""
    return torch.zeros_like(rows.leaf) if rows.leaf.grad is None else rows.leaf.grad


def rate_for(rate: float | Mapping[str, float] | None, key: str) -> float | None:
    """The learning rate that one setting gives an encoder, or None where it says nothing of it."""
    return rate.get(key) if isinstance(rate, Mapping) else rate


class WordTrainer:
    """Trains the rows of the words that are to be trained; all others are read, never written."""

    def __init__(
        self,
        injection: Injection,
        words: Sequence[Word],
        statistics: Mapping[str, NormStatistics],
        *,
        learning_rate: float | Mapping[str, float],
        optimizer: Mapping[str, Any],
        clip_norm: float,
        preserve_norm: Any,
        start: Mapping[str, Tensor] | None = None,
    ) -> None:
        """`start` has the rows whose norms the rule `initial` keeps, by encoder; else those the stage begins with."""
        self.injection, self.statistics = injection, statistics
        self.clip_norm, self.preserve_norm = clip_norm, preserve_norm
        self.words = {word.placeholder: word for word in words if word.train}
        self.stopped_at: dict[str, int] = {}
        self.reached: set[str] = set()
        betas = (float(optimizer["betas"][0]), float(optimizer["betas"][1]))
        rest = {"eps": float(optimizer["eps"]), "weight_decay": float(optimizer["weight_decay"])}
        self.adam = {key: LazyAdamW(rows.values, betas=betas, **rest) for key, rows in injection.rows.items()}
        self.start = start or {key: rows.values.clone() for key, rows in injection.rows.items()}
        self.rates = {key: self._rates(key, learning_rate) for key in injection.rows}
        self.highest_rate = max(float(rates.max()) for rates in self.rates.values())

    def _rates(self, key: str, default: float | Mapping[str, float]) -> Tensor:
        """One learning rate a row: the word's own, per encoder where it says so, else the stage's."""
        rows = self.injection.rows[key]
        rates = torch.zeros(len(rows), device=rows.values.device)
        for name, word in self.words.items():
            span = rows.spans[name]
            own = rate_for(word.learning_rate, key)
            rate = own if own is not None else rate_for(default, key)
            if rate is None:
                raise StageError(f"learning_rate has no number for {key}: add it, 0 to hold its vectors still")
            rates[span.start : span.stop] = rate
        return rates

    def running(self, words: Iterable[str], clock: Clock) -> set[str]:
        """Which of these words are still in training; those whose stop has come are noted with the step."""
        going = [word for word in words if word in self.words and word not in self.stopped_at]
        over = {word for word in going if stopped(self.words[word].stop_after, clock)}
        self.stopped_at |= dict.fromkeys(over, clock.step)
        return set(going) - over

    def step(self, active: Mapping[str, ActiveRows], factor: float, running: set[str]) -> float:
        """Move the running words of this batch; return the norm of their gradient before clipping.

        Raises StageError for a gradient that is not finite (nothing has moved then) or that misses a vector.
        """
        part = {key: self._moving(key, rows, running) for key, rows in active.items()}
        gradients = {key: _gradient(rows)[where] for key, (rows, where) in part.items()}
        if not any(len(gradient) for gradient in gradients.values()):
            return 0.0
        total = float(torch.stack([gradient.norm() for gradient in gradients.values()]).norm())
        if not math.isfinite(total):
            raise StageError(f"the gradient of the words is {total}, not a finite number")
        self._check_reach(part, gradients)
        scale = min(1.0, self.clip_norm / (total + 1e-6)) if self.clip_norm else 1.0
        for key, gradient in gradients.items():
            rows, where = part[key]
            self._move(key, rows.index[where], rows.leaf[where], gradient * scale, factor)
        return total

    def _moving(self, key: str, rows: ActiveRows, running: set[str]) -> tuple[ActiveRows, Tensor | slice]:
        """Which of the active rows are to move."""
        if all(word in running for word in rows.words):
            return rows, slice(None)
        spans = self.injection.rows[key].spans
        keep = [word in running for word in rows.words for _ in spans[word]]
        return rows, torch.tensor(keep, dtype=torch.bool, device=rows.leaf.device)

    def _move(self, key: str, index: Tensor, rows: Tensor, gradient: Tensor, factor: float) -> None:
        moved = self.adam[key].step(index, rows, gradient, self.rates[key][index] * factor)
        if self.preserve_norm is not None:
            kept = apply_rule(moved, self.preserve_norm, self.statistics[key], self.start[key][index])
            self.injection.rows[key].values[index] = kept

    def _check_reach(
        self, part: Mapping[str, tuple[ActiveRows, Tensor | slice]], gradients: Mapping[str, Tensor]
    ) -> None:
        """At a word's first step a gradient must reach each of its vectors in each encoder that trains it."""
        new = {word for rows, _ in part.values() for word in rows.words if word in self.words} - self.reached
        if not new:
            return
        for key, gradient in gradients.items():
            rows, where = part[key]
            index = rows.index[where]
            missed = index[(gradient.abs().amax(dim=1) == 0) & (self.rates[key][index] > 0)].tolist()
            for name in sorted(new):
                span = self.injection.rows[key].spans[name]
                lost = [row - span.start for row in missed if row in span]
                if lost:
                    raise StageError(
                        f"no gradient reaches vector {', '.join(map(str, lost))} of {name!r} in {key}: the caption is "
                        "cut off before it, or nothing of the model listens to this encoder"
                    )
        self.reached |= new
