"""What exported embeddings say of themselves, however many they are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from pivotune.converters.embedding import Contents, Embedding
from pivotune.pipeline.export import standalone as module
from pivotune.pipeline.tensors import to_raw


def embeddings_of(values: torch.Tensor) -> Contents:
    """An embedding for each row; every third has a second vector."""
    rows = {f"w{at}": torch.stack([row] * (2 if at % 3 == 0 else 1)) for at, row in enumerate(values)}
    return Contents(tuple(Embedding(name, {"clip_l": to_raw(own)}, {}) for name, own in rows.items()))


def test_distances_of_thousands_of_embeddings_are_measured_in_parts(monkeypatch):
    draw = torch.Generator().manual_seed(0)
    initial, now = (torch.randn(2 * module.AT_ONCE + 5, 8, generator=draw) for _ in range(2))
    context: Any = SimpleNamespace(
        initial=embeddings_of(initial),
        recipe=SimpleNamespace(name="x", seed=0, model=SimpleNamespace(base="x", clip_skip=1)),
        model=SimpleNamespace(family=SimpleNamespace(name="sd1"), encoders=[SimpleNamespace(key="clip_l", width=8)]),
    )  # fmt: skip
    asked, plain = [], module.vectors_of_all
    monkeypatch.setattr(
        module, "vectors_of_all", lambda embeddings, *rest: asked.append(len(embeddings)) or plain(embeddings, *rest)
    )
    found = module.with_metadata(context, embeddings_of(now)).embeddings
    assert max(asked) <= module.AT_ONCE
    for at, (embedding, way) in enumerate(
        zip(found, (now.double() - initial.double()).norm(dim=1).tolist(), strict=True)
    ):
        assert embedding.metadata["pivotune.distance"] == "clip_l" + f" {way:.4g}" * (2 if at % 3 == 0 else 1)
