"""Stage `tokenize`: the initial vectors of each embedding, from its initial text or its base, per text encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...converters.embedding import Contents, Embedding
from ...converters.tensor import RawTensor
from ..embeddings.initial import InitialTokens, TokenizedTexts, initial_tokens_of, read_base_vectors
from ..embeddings.injection import Encoder
from ..embeddings.outputs import encoded_vectors
from ..errors import StageError
from ..files import sha256
from ..recipe.model import EmbeddingSpec
from ..recipe.options import TokenizeOptions
from ..run.context import RunContext, RunState
from ..tensors import from_raw, to_raw_each
from ..text import count_of

Base = dict[str, RawTensor]  # vectors of a file that an embedding starts from, by encoder; empty for most


def tokenize(context: RunContext, state: RunState, contents: Contents, options: TokenizeOptions) -> Contents:
    """Make the recipe's embeddings: vectors of the base or of the initial text, truncated or padded to their number.

    Each tokenizer is called once for all texts, and each vocabulary indexed once for all vectors.
    """
    specs, encoders, pad_with = context.recipe.embeddings, context.model.encoders, options.pad_with
    keys, widths = [encoder.key for encoder in encoders], {encoder.key: encoder.width for encoder in encoders}
    bases = [read_base_vectors(embedding, keys, widths) for embedding in specs]
    known = [pad_with, *(embedding.initial_text for embedding in specs)]
    texts = {encoder.key: TokenizedTexts(encoder.tokenizer, known)
             for encoder in encoders}  # fmt: skip
    made = [_tokens(state, embedding, base, texts, pad_with) for embedding, base in zip(specs, bases, strict=True)]
    vectors = {encoder.key: _vectors(encoder, specs, [one[encoder.key] for one in made], bases) for encoder in encoders}
    state.initial_tokens |= {embedding.placeholder: tokens for embedding, tokens in zip(specs, made, strict=True)}
    embeddings = (
        Embedding(
            embedding.placeholder, {key: vectors[key][at] for key in keys}, {"initial_text": embedding.initial_text}
        )
        for at, embedding in enumerate(specs)
    )
    state.initial = Contents(tuple(embeddings), contents.rest, contents.metadata)
    return state.initial


def _tokens(
    state: RunState, embedding: EmbeddingSpec, base: Base, texts: dict[str, TokenizedTexts], pad_with: str
) -> dict[str, InitialTokens]:
    """The initial tokens for each text encoder; warns of what is truncated and of what a base lacks."""
    made = {}
    for key, own in texts.items():
        try:
            tokens = made[key] = initial_tokens_of(own, embedding, pad_with, base, key)
        except ValueError as error:
            raise StageError(f"{embedding.placeholder}: {error}") from error
        if tokens.cut:
            what = "initial text" if key not in base else "base"
            lost = f"truncated to {count_of(len(tokens.ids), 'token')} for {key}, without {' '.join(tokens.cut)}"
            state.warnings.append(f"{embedding.placeholder}: the {what} is {lost}")
    if embedding.base is not None:
        state.notes.append(
            f"{embedding.placeholder} starts from {embedding.base.name} (sha256 {sha256(embedding.base)})"
        )
        without = [key for key in texts if key not in base]
        if without:
            text = f"{embedding.base.name} has no vectors for {', '.join(without)}; these start from the initial text"
            state.warnings.append(f"{embedding.placeholder}: {text}")
    return made


def _vectors(
    encoder: Encoder, specs: Sequence[EmbeddingSpec], made: Sequence[InitialTokens], bases: Sequence[Base]
) -> list[RawTensor]:
    """For each embedding (tokens, width) float32: its base's rows where the ids are -1, else the vocabulary's.

    Those of an output embedding are the encoder's states of its initial text.
    """
    counts = [len(tokens.ids) for tokens in made]
    ids = torch.tensor([one for tokens in made for one in tokens.ids], device=encoder.table.device)
    rows = encoder.table[ids.clamp(min=0)].float()
    for part, spec, tokens, base in zip(rows.split(counts), specs, made, bases, strict=True):
        if spec.output and encoder.output is not None:
            part[:] = encoded_vectors(encoder, spec.initial_text, len(part)).to(rows)
        if encoder.key in base:
            part[: tokens.kept] = _kept(base[encoder.key], tokens.kept, spec, encoder.key).to(rows)
    return to_raw_each(rows, counts)


def _kept(base: RawTensor, count: int, spec: EmbeddingSpec, key: str) -> Tensor:
    rows = from_raw(base)[:count]
    if not bool(torch.isfinite(rows).all()):
        raise StageError(
            f"{spec.placeholder}: its base {spec.base} has values for {key} that are not finite numbers; use another "
            "file, or remove base"
        )
    return rows
