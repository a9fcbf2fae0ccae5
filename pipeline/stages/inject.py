"""Stage `inject`: makes the embeddings usable and trainable in the loaded model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ...converters.embedding import Contents, Embedding
from ..embeddings.injection import EmbeddingRows, Encoder, Injection
from ..errors import StageError
from ..models.load import Model
from ..recipe.options import InjectOptions
from ..run.context import RunContext, RunState
from ..tensors import vectors_of_all


def inject(context: RunContext, state: RunState, contents: Contents, options: InjectOptions) -> Contents:
    """Put the embeddings into the encoders (changes the model; `RunState.eject` restores it).

    With `encoders` only these text encoders get them; for the others the placeholders are removed from the text.
    """
    if not contents.embeddings:
        raise StageError("there is no embedding to inject; put a tokenize stage before this one")
    if state.injection is not None:
        raise StageError("the embeddings are already injected; remove this inject stage")
    contents = _only(context.model, contents, options.encoders)
    rows = {
        encoder.key: _rows(encoder, contents.embeddings, context.recipe.outputs, context.model.device)
        for encoder in context.model.encoders
    }
    state.initial = _only(context.model, state.initial, options.encoders)
    state.injection = Injection(context.model.pipe, context.model.encoders, rows)
    return contents


def _rows(
    encoder: Encoder, embeddings: Sequence[Embedding], outputs: frozenset[str], device: torch.device
) -> EmbeddingRows:
    vectors = vectors_of_all(embeddings, encoder.key, encoder.width)
    rows = {embedding.name: own for embedding, own in zip(embeddings, vectors, strict=True)}
    return EmbeddingRows(rows, device, outputs if encoder.output is not None else ())


def _only(model: Model, contents: Contents, encoders: Sequence[str] | None) -> Contents:
    """The embeddings with vectors for these text encoders only.

    StageError when the model lacks one, or an embedding has none left.
    """
    have = [encoder.key for encoder in model.encoders]
    strange = [key for key in encoders or () if key not in have]
    if strange:
        raise StageError(f"encoders: the model has no {', '.join(strange)}; it has {', '.join(have)}")

    if encoders is None and all(
        embedding.vectors.keys() <= set(have) and embedding.vectors for embedding in contents.embeddings
    ):
        return contents

    def part(embedding: Embedding) -> Embedding:
        kept = {
            key: raw for key, raw in embedding.vectors.items() if key in have and (encoders is None or key in encoders)
        }
        if not kept:
            raise StageError(
                f"{embedding.name}: has vectors for {', '.join(embedding.vectors)} only, so nothing would be injected"
            )
        return replace(embedding, vectors=kept)

    return replace(contents, embeddings=tuple(part(embedding) for embedding in contents.embeddings))
