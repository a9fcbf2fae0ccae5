"""Metrics of vectors: norm, distance from initialisation, and nearest tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ...converters.embedding import Embedding
from ..tensors import vectors_for
from .injection import Encoder, Injection


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


def vector_metrics(encoders: Sequence[Encoder], injection: Injection, initial: Embedding) -> dict[str, Any]:
    """Norm of each vector of an embedding, its distance from `initial`, and the nearest token, per encoder.

    These are the vectors in the tables: during training the raw weights, not the EMA weights.
    """
    measured: dict[str, Any] = {}
    for encoder in encoders:
        rows = injection.rows[encoder.key]
        now = rows.of(initial.name)
        distance = (now - vectors_for(initial, encoder.key, encoder.width).to(now)).norm(dim=1)
        near = [row[0][0] for row in nearest_tokens(now, encoder.table, 1)] if len(now) else []
        names = encoder.tokenizer.convert_ids_to_tokens(near)
        measured[encoder.key] = {"norm": now.norm(dim=1).tolist(), "distance": distance.tolist(), "nearest": names}
    return measured
