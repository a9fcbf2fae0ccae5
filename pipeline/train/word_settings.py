"""How a train stage says that words are moved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


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
