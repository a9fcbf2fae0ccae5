"""What every method is given: a random vocabulary, embeddings of four vectors, captions that hold up to three of
them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

VOCABULARY = 49408
LENGTH = 77
VECTORS = 4  # an embedding
EMBEDDINGS_A_CAPTION = 3
CAPTIONS = 16  # taken in turn
WIDTHS = {"CLIP-L": 768, "bigG": 1280}


@dataclass(frozen=True, eq=False)
class Scene:
    """`held` says for each caption which embeddings it holds, in rising order; `plain` are its ids without them."""

    table: Tensor
    vectors: Tensor  # (embeddings, 4, width)
    by_caption: list[list[int]]
    plain: Tensor  # (captions, 77)
    pull: Tensor  # (1, 77, width): the gradient that comes back from the encoder

    @property
    def embeddings(self) -> int:
        return len(self.vectors)

    @property
    def norm(self) -> float:
        return float(self.table.norm(dim=1).median())

    def ids(self, caption: int, first: list[int]) -> Tensor:
        """(1, 77) ids of a caption whose n-th embedding has its vectors at first[n], first[n] + 1, ..."""
        ids = self.plain[caption].clone()
        for n, start in enumerate(first):
            ids[3 + 6 * n : 3 + 6 * n + VECTORS] = torch.arange(start, start + VECTORS)
        return ids.unsqueeze(0)

    def table_ids(self) -> list[Tensor]:
        """The captions for methods that give every embedding ids behind the vocabulary."""
        return [self.ids(n, [VOCABULARY + VECTORS * w for w in own]) for n, own in enumerate(self.by_caption)]

    def texts(self) -> list[str]:
        return [" and ".join(f"<embedding-{w}>" for w in own) + " on a table" for own in self.by_caption]


def make_scene(embeddings: int, width: int, table: Tensor | None = None) -> Scene:
    torch.manual_seed(0)
    if table is None:
        table = torch.randn(VOCABULARY, width) * (0.4 / width**0.5)
    draw = random.Random(embeddings)
    by_caption = [
        sorted(draw.sample(range(embeddings), min(EMBEDDINGS_A_CAPTION, embeddings))) for _ in range(CAPTIONS)
    ]
    vectors = torch.randn(embeddings, VECTORS, width) * (0.4 / width**0.5)
    plain = torch.randint(0, VOCABULARY - 2, (CAPTIONS, LENGTH))
    return Scene(table, vectors, by_caption, plain, torch.randn(1, LENGTH, width) * 0.01)
