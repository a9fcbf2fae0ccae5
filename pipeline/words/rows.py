"""The new vectors of one encoder: one float32 table of their own, apart from the vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


class WordRows:
    """All taught vectors of one encoder.

    `values` is (rows, width) float32 and never requires a gradient itself: a step takes out the few rows its batch
    holds as a leaf, so neither gradient nor time grows with the number of words. `spans` says which rows are whose; a
    word may have none in this encoder, which then leaves it out of the text.
    """

    def __init__(self, vectors: Mapping[str, Tensor], device: torch.device | str = "cpu") -> None:
        self.spans: dict[str, range] = {}
        start = 0
        for word, rows in vectors.items():
            if rows.ndim != 2:
                raise ValueError(f"{word}: vectors have shape {tuple(rows.shape)}, not (tokens, width)")
            self.spans[word] = range(start, start + rows.shape[0])
            start += rows.shape[0]
        self.values = torch.cat(list(vectors.values())).detach().to(device, torch.float32)

    def __len__(self) -> int:
        return self.values.shape[0]

    def of(self, word: str) -> Tensor:
        """The vectors of one word, (tokens, width) float32: a view, not a copy."""
        span = self.spans[word]
        return self.values[span.start : span.stop]

    def index(self, words: Iterable[str]) -> list[int]:
        """Row numbers of these words, in the order given."""
        return [row for word in words for row in self.spans[word]]
