"""Which words of the vocabulary a taught vector has come to lie near."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def nearest_tokens(vectors: Tensor, table: Tensor, count: int = 3) -> list[list[tuple[int, float]]]:
    """For each row of (tokens, width): the `count` ids of the vocabulary with the largest cosine, best first."""
    directions = normalize(vectors.detach().to(torch.float32), dim=1)
    best: list[tuple[Tensor, Tensor]] = []
    for start in range(0, len(table), 16384):  # a few MB at a time, whatever the vocabulary
        block = normalize(table[start : start + 16384].detach().to(directions), dim=1)
        values, ids = (directions @ block.T).topk(min(count, len(block)), dim=1)
        best.append((values, ids + start))
    values = torch.cat([v for v, _ in best], dim=1)
    ids = torch.cat([i for _, i in best], dim=1)
    order = values.argsort(dim=1, descending=True, stable=True)[:, :count]
    rows = zip(ids.gather(1, order).tolist(), values.gather(1, order).tolist(), strict=True)
    return [list(zip(row_ids, row_values, strict=True)) for row_ids, row_values in rows]
