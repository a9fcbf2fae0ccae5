"""Stage `rescale`: the norms of the trained vectors are set by a rule, per encoder."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...converters.embedding import Contents
from ..embeddings.norms import apply_rule
from ..run.context import RunContext, RunState
from ..tensors import from_raw, to_raw


def rescale(context: RunContext, state: RunState, contents: Contents, *, to: Any = "median") -> Contents:
    """Vectors scaled by `to` (see `embeddings.norms.apply_rule`), with each encoder's own statistics of its vocabulary.

    Embeddings with `train = false` are left as they are.
    """
    start = state.initial.by_name
    moved = [embedding for embedding in contents.embeddings if embedding.name in context.recipe.trained]
    after = {embedding.name: dict(embedding.vectors) for embedding in moved}
    for key, statistics in context.statistics.items():
        here = [embedding for embedding in moved if key in embedding.vectors]
        if not here:
            continue
        vectors = [from_raw(embedding.vectors[key]) for embedding in here]
        initial = torch.cat([from_raw(start[embedding.name].vectors[key]) for embedding in here]).norm(dim=1)
        scaled = apply_rule(torch.cat(vectors), to, statistics, initial).split([len(v) for v in vectors])
        for embedding, before, now in zip(here, vectors, scaled, strict=True):
            after[embedding.name][key] = to_raw(now.contiguous())
            state.notes.append(_note(embedding.name, key, before, now))
    return replace(
        contents, embeddings=tuple(replace(w, vectors=after.get(w.name, w.vectors)) for w in contents.embeddings)
    )


def _note(embedding: str, key: str, before: Tensor, after: Tensor) -> str:
    norms = zip(before.norm(dim=1).tolist(), after.norm(dim=1).tolist(), strict=True)
    return f"{embedding} {key}: norm " + ", ".join(f"{one:.3f} → {two:.3f}" for one, two in norms)
