"""Stage `rescale`: the norms of the trained vectors are set by a rule, per encoder."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...converters.embedding import Contents
from ..embeddings.norms import apply_rule
from ..recipe.options import RescaleOptions
from ..run.context import RunContext, RunState
from ..tensors import from_raw, to_raw


def rescale(context: RunContext, state: RunState, contents: Contents, options: RescaleOptions) -> Contents:
    """Scale trained vectors by the rule `to` (see `embeddings.norms.apply_rule`), none of `train = false`."""
    scaled, notes = rescaled(context, state.initial, contents, options)
    state.notes += notes
    return scaled


def rescaled(
    context: RunContext, initial: Contents, contents: Contents, options: RescaleOptions
) -> tuple[Contents, list[str]]:
    """The contents with scaled vectors, by the statistics of each encoder's vocabulary; notes on every norm."""
    trained = [embedding for embedding in contents.embeddings if embedding.name in context.recipe.trained]
    after, notes = {embedding.name: dict(embedding.vectors) for embedding in trained}, []
    for key, statistics in context.statistics.items():
        here = [embedding for embedding in trained if key in embedding.vectors]
        if not here:
            continue
        vectors = [from_raw(embedding.vectors[key]) for embedding in here]
        norms = torch.cat([from_raw(initial.by_name[one.name].vectors[key]) for one in here]).norm(dim=1)
        scaled = apply_rule(torch.cat(vectors), options.to, statistics, norms).split([len(v) for v in vectors])
        for embedding, before, now in zip(here, vectors, scaled, strict=True):
            after[embedding.name][key] = to_raw(now.contiguous())
            notes.append(_note(embedding.name, key, before, now))
    embeddings = tuple(replace(one, vectors=after.get(one.name, one.vectors)) for one in contents.embeddings)
    return replace(contents, embeddings=embeddings), notes


def _note(embedding: str, key: str, before: Tensor, after: Tensor) -> str:
    norms = zip(before.norm(dim=1).tolist(), after.norm(dim=1).tolist(), strict=True)
    return f"{embedding} {key}: norm " + ", ".join(f"{one:.3f} → {two:.3f}" for one, two in norms)
