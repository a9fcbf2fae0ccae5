"""Norms of vectors against their vocabulary's, and the rules that set them. Pure functions of tensors.

Norms are L2, one a vector. The vocabulary's statistics come from each encoder's own table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class NormStatistics:
    """Median, mean, and the 5 % and 95 % quantiles of the L2 norms of a vocabulary's vectors."""

    median: float
    mean: float
    low: float
    high: float


def norm_statistics(table: Tensor) -> NormStatistics:
    """Statistics of the row norms of a (tokens, width) table, computed in float32.

    The median is torch's: for an even count the lower of the two middle values, as OneTrainer takes it.
    """
    norms = table.detach().to(torch.float32).norm(dim=1)
    ordered = norms.sort().values
    last = len(ordered) - 1
    low, high = ordered[round(0.05 * last)], ordered[round(0.95 * last)]
    return NormStatistics(float(norms.median()), float(norms.mean()), float(low), float(high))


def scale_to(vectors: Tensor, norms: Tensor | float) -> Tensor:
    """Each row of (tokens, width) scaled to its norm. A row of zeros has no direction and stays."""
    now = vectors.norm(dim=1, keepdim=True)
    goal = torch.as_tensor(norms, dtype=vectors.dtype, device=vectors.device).reshape(-1, 1)
    return torch.where(now > 0, vectors * (goal / now.clamp(min=1e-12)), vectors)


def apply_rule(vectors: Tensor, rule: Any, statistics: NormStatistics, initial: Tensor) -> Tensor:
    """Rows of (tokens, width) with the norms that a rule asks for.

    `rule` is `median` (OneTrainer: each vector to the median norm of the table), `mean`, `initial` (the norm of the
    same row of `initial`), a number, or `{"low": a, "high": b}`, which moves only norms outside the band to its edge.
    """
    if isinstance(rule, Mapping):
        return scale_to(vectors, vectors.norm(dim=1).clamp(float(rule["low"]), float(rule["high"])))
    if rule == "initial":
        return scale_to(vectors, initial.to(vectors).norm(dim=1))
    named = {"median": statistics.median, "mean": statistics.mean}
    return scale_to(vectors, named[rule] if isinstance(rule, str) else float(rule))
