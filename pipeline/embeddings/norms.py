"""Statistics of a vocabulary's norms, and norm rules. Pure functions of tensors.

Norms are L2, one per vector. The vocabulary's statistics come from each encoder's own table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..recipe.options import Band, NormRule

SPREAD_POWER = 0.1
BLOCK = 1 << 24  # values of a table that are in float32 at a time: 64 MiB


@dataclass(frozen=True)
class NormStatistics:
    """Median, mean, and the 5 % and 95 % quantiles of the L2 norms of a vocabulary's vectors.

    `spread` is the standard deviation of all its values.
    """

    median: float
    mean: float
    low: float
    high: float
    spread: float = 0.0


def norm_statistics(table: Tensor) -> NormStatistics:
    """Statistics of the row norms of a (tokens, width) table, computed in float32 and in blocks of 16 million values.

    The median is torch's: for an even count the lower of the two middle values, as in OneTrainer.
    """
    parts, total, squares = [], 0.0, 0.0
    for block in table.detach().split(max(1, BLOCK // table.shape[1])):
        values = block.to(torch.float32)
        parts.append(values.norm(dim=1))
        total += float(values.sum(dtype=torch.float64))
        squares += float(parts[-1].double().square().sum())
    norms, count = torch.cat(parts), table.numel()
    ordered = norms.sort().values
    last = len(ordered) - 1
    low, high = ordered[round(0.05 * last)], ordered[round(0.95 * last)]
    spread = math.sqrt(max(0.0, squares - total**2 / count) / max(1, count - 1))
    return NormStatistics(float(norms.median()), float(norms.mean()), float(low), float(high), spread)


def scale_to(vectors: Tensor, norms: Tensor | float) -> Tensor:
    """Each row of (tokens, width) scaled to its norm. A row of zeros is unchanged."""
    now = vectors.norm(dim=1, keepdim=True)
    goal = torch.as_tensor(norms, dtype=vectors.dtype, device=vectors.device).reshape(-1, 1)
    return torch.where(now > 0, vectors * (goal / now.clamp(min=1e-12)), vectors)


def apply_rule(vectors: Tensor, rule: NormRule, statistics: NormStatistics, initial: Tensor) -> Tensor:
    """Rows of (tokens, width) with the norms that a rule asks for.

    `rule` is `median` (OneTrainer: each vector to the median norm of the table), `mean`, `initial` (the norms
    `initial`, (tokens,), of the initial vectors), a number, a band, which clamps norms, or
    `spread`: all rows together times (standard deviation of the table / theirs) ** 0.1, which moves theirs towards the
    table's in each step (diffusers' advanced training scripts, retract_embeddings).
    """
    if rule == "spread":
        now = vectors.std()
        return vectors * (statistics.spread / now) ** SPREAD_POWER if now > 0 else vectors
    if isinstance(rule, Band):
        return scale_to(vectors, vectors.norm(dim=1).clamp(float(rule.low), float(rule.high)))
    if rule == "initial":
        return scale_to(vectors, initial.to(vectors))
    named = {"median": statistics.median, "mean": statistics.mean}
    return scale_to(vectors, named[rule] if isinstance(rule, str) else float(rule))


def apply_rules(
    vectors: Tensor, rules: Sequence[NormRule | None], statistics: NormStatistics, initial: Tensor
) -> Tensor:  # fmt: skip
    """Rows of (tokens, width), each by its own rule (None: as it is); rows with the same rule are handled together."""
    result = vectors.clone()
    for rule in [rule for at, rule in enumerate(rules) if rule is not None and rule not in rules[:at]]:
        rows = [at for at, one in enumerate(rules) if one == rule]
        result[rows] = apply_rule(vectors[rows], rule, statistics, initial[rows])
    return result
