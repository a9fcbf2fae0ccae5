"""How far a word has come: its vectors' norms, their way from the start, and the tokens they have come near."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...converters.embedding import Embedding
from .injection import Encoder, Injection
from .nearest import nearest_tokens
from .raw import vectors_for


def gauge(encoders: Sequence[Encoder], injection: Injection, start: Embedding) -> dict[str, Any]:
    """Norm of each vector of a word, its way from `start`, and the nearest token, per encoder.

    It is told of the vectors that stand in the tables: while they train, those that take the steps, not their averages.
    """
    measured: dict[str, Any] = {}
    for encoder in encoders:
        rows = injection.rows[encoder.key]
        now = rows.of(start.name)
        way = (now - vectors_for(start, encoder.key, encoder.width).to(now)).norm(dim=1)
        near = [row[0][0] for row in nearest_tokens(now, encoder.table, 1)] if len(now) else []
        names = encoder.tokenizer.convert_ids_to_tokens(near)
        measured[encoder.key] = {"norm": now.norm(dim=1).tolist(), "moved": way.tolist(), "nearest": names}
    return measured
