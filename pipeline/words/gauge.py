"""How far a word has come: its vectors' norms, their way from the start, and the tokens they have come near."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from .injection import Encoder, Injection
from .nearest import nearest_tokens


def gauge(encoders: Sequence[Encoder], injection: Injection, starts: Mapping[str, Tensor], name: str) -> dict[str, Any]:
    """Norm of each vector of a word, its way from the start, and the nearest token, per encoder.

    `starts` has each encoder's rows as they began, in the order of the injected ones.
    """
    measured: dict[str, Any] = {}
    for encoder in encoders:
        rows = injection.rows[encoder.key]
        now, span = rows.of(name), rows.spans[name]
        way = (now - starts[encoder.key][span.start : span.stop]).norm(dim=1)
        near = [row[0][0] for row in nearest_tokens(now, encoder.table, 1)] if len(now) else []
        names = encoder.tokenizer.convert_ids_to_tokens(near)
        measured[encoder.key] = {"norm": now.norm(dim=1).tolist(), "moved": way.tolist(), "nearest": names}
    return measured
