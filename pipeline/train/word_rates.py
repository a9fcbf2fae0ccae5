"""The learning rate of each row of a table of words, and whether a gradient reached it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ..errors import StageError
from ..recipe.model import Word
from ..words.rows import WordRows


def rate_for(rate: float | Mapping[str, float] | None, key: str) -> float | None:
    """The learning rate that one setting gives an encoder, or None where it says nothing of it."""
    return rate.get(key) if isinstance(rate, Mapping) else rate


def row_rates(key: str, rows: WordRows, words: Sequence[Word], default: float | Mapping[str, float]) -> Tensor:
    """(rows,) learning rates of one encoder: the word's own, per encoder where it says so, else the stage's.

    Rows of words that are not trained have rate 0. Raises StageError when no setting has a number for this encoder.
    """
    rates = torch.zeros(len(rows), device=rows.values.device)
    for word in words:
        if not word.train:
            continue
        own = rate_for(word.learning_rate, key)
        rate = own if own is not None else rate_for(default, key)
        if rate is None:
            raise StageError(f"learning_rate has no number for {key}: add it, 0 to hold its vectors still")
        span = rows.spans[word.placeholder]
        rates[span.start : span.stop] = rate
    return rates


def check_reach(
    key: str, index: Tensor, gradient: Tensor, rates: Tensor, spans: Mapping[str, range], words: Iterable[str]
) -> None:
    """StageError when no gradient reaches one of these words' vectors in an encoder that trains it.

    `index` (rows,) are the numbers of the rows whose `gradient` (rows, width) is given.
    """
    missed = index[(gradient.abs().amax(dim=1) == 0) & (rates[index] > 0)].tolist()
    for name in sorted(words):
        span = spans[name]
        lost = [row - span.start for row in missed if row in span]
        if lost:
            raise StageError(
                f"no gradient reaches vector {', '.join(map(str, lost))} of {name!r} in {key}: the caption is "
                "cut off before it, or nothing of the model listens to this encoder"
            )
