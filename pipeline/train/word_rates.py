"""Which rows of a table of words a step moves, their learning rates, and whether a gradient reached them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import StageError
from ..recipe.model import Word
from ..words.injection import ActiveRows
from ..words.rows import WordRows


def rate_for(rate: float | Mapping[str, float] | None, key: str) -> float | None:
    """The learning rate that one setting gives an encoder, or None where it says nothing of it."""
    return rate.get(key) if isinstance(rate, Mapping) else rate


def row_rates(key: str, rows: WordRows, words: Sequence[Word], default: float | Mapping[str, float]) -> Tensor:
    """(rows,) learning rates of one encoder: the word's own, per encoder where it says so, else the stage's.

    Rows of words that are not trained have rate 0. Raises StageError when no setting has a number for this encoder.
    """
    rates = [0.0] * len(rows)
    for word in words:
        if not word.train:
            continue
        own = rate_for(word.learning_rate, key)
        rate = own if own is not None else rate_for(default, key)
        if rate is None:
            raise StageError(f"learning_rate has no number for {key}: add it, 0 to hold its vectors still")
        span = rows.spans[word.placeholder]
        rates[span.start : span.stop] = [rate] * len(span)
    return torch.tensor(rates, dtype=torch.float32, device=rows.values.device)


def word_rates(
    rates: Mapping[str, Tensor], rows: Mapping[str, WordRows], words: Iterable[str]
) -> dict[str, dict[str, float]]:
    """The learning rate of each word in the encoders in which it has rows, from those of the rows by encoder."""
    listed = {key: own.tolist() for key, own in rates.items()}
    spans = {key: rows[key].spans for key in rates}
    return {word: {key: listed[key][spans[key][word].start] for key in rates if spans[key][word]} for word in words}


@dataclass(frozen=True, eq=False)
class Moving:
    """The rows of one encoder that a step moves: whose they are, their numbers, values and gradient."""

    words: tuple[str, ...]
    index: Tensor
    values: Tensor
    gradient: Tensor


def moving(rows: ActiveRows, running: set[str], spans: Mapping[str, range], scale: float) -> Moving:
    """Those of the active rows that belong to running words, with their gradient divided by `scale`.

    The gradient is zeros where nothing of the model listened to the rows.
    """
    gradient = torch.zeros_like(rows.leaf) if rows.leaf.grad is None else rows.leaf.grad
    if scale != 1.0:
        gradient = gradient / scale
    values = rows.leaf.detach()
    if all(word in running for word in rows.words):
        return Moving(rows.words, rows.index, values, gradient)
    keep = [word in running for word in rows.words for _ in spans[word]]
    where = torch.tensor(keep, dtype=torch.bool, device=values.device)
    words = tuple(word for word in rows.words if word in running)
    return Moving(words, rows.index[where], values[where], gradient[where])


def check_reach(key: str, part: Moving, rates: Tensor, spans: Mapping[str, range], words: Iterable[str]) -> None:
    """StageError when no gradient reaches one of these words' vectors in an encoder that trains it."""
    missed = part.index[(part.gradient.abs().amax(dim=1) == 0) & (rates[part.index] > 0)].tolist()
    for name in sorted(words):
        span = spans[name]
        lost = [row - span.start for row in missed if row in span]
        if lost:
            raise StageError(
                f"no gradient reaches vector {', '.join(map(str, lost))} of {name!r} in {key}: the caption is "
                "cut off before it, or nothing of the model listens to this encoder"
            )
