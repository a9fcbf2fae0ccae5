"""Stage `tokenize`: each word's initial text, or its base, becomes its first vectors, per encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...converters.embedding import Contents, Embedding
from ...converters.tensor import RawTensor
from ..embeddings.initial import InitialTokens, Texts, start_of, start_tokens
from ..embeddings.injection import Encoder
from ..errors import StageError
from ..files import sha256
from ..recipe.model import Word
from ..run.context import Run
from ..tensors import from_raw, to_raw_each

Base = dict[str, RawTensor]  # vectors that a word goes on from, by encoder; empty for most


def tokenize(run: Run, contents: Contents, *, pad_with: str = "*") -> Contents:
    """One embedding a word: its base's vectors or the vocabulary's of its initial text, cut or padded to its count.

    Each encoder's tokenizer is asked once for all texts, and its vocabulary once for all rows.
    """
    words, encoders = run.recipe.words, run.model.encoders
    keys, widths = [encoder.key for encoder in encoders], {encoder.key: encoder.width for encoder in encoders}
    bases = [start_of(word, keys, widths) for word in words]
    texts = {encoder.key: Texts(encoder.tokenizer, [pad_with, *(word.initial_text for word in words)])
             for encoder in encoders}  # fmt: skip
    made = [_tokens(run, word, base, texts, pad_with) for word, base in zip(words, bases, strict=True)]
    vectors = {encoder.key: _vectors(encoder, [tokens[encoder.key] for tokens in made], bases) for encoder in encoders}
    run.initial |= {word.placeholder: tokens for word, tokens in zip(words, made, strict=True)}
    embeddings = (
        Embedding(word.placeholder, {key: vectors[key][at] for key in keys}, {"initial_text": word.initial_text})
        for at, word in enumerate(words)
    )
    run.start = Contents(tuple(embeddings), contents.rest, contents.metadata)
    return run.start


def _tokens(run: Run, word: Word, base: Base, texts: dict[str, Texts], pad_with: str) -> dict[str, InitialTokens]:
    """What each encoder starts the word from; what is cut off, and what a base lacks, is said."""
    made = {}
    for key, own in texts.items():
        try:
            tokens = made[key] = start_tokens(own, word, pad_with, base, key)
        except ValueError as error:
            raise StageError(f"{word.placeholder}: {error}") from error
        if tokens.cut:
            what = "initial text" if key not in base else "base"
            lost = f"cut to {len(tokens.ids)} tokens in {key}, without {' '.join(tokens.cut)}"
            run.warnings.append(f"{word.placeholder}: {what} is {lost}")
    if word.base is not None:
        run.notes.append(f"{word.placeholder} goes on from {word.base.name} (sha256 {sha256(word.base)})")
        without = [key for key in texts if key not in base]
        if without:
            said = f"{word.base.name} has no vectors for {', '.join(without)}, which start from the initial text"
            run.warnings.append(f"{word.placeholder}: {said}")
    return made


def _vectors(encoder: Encoder, made: Sequence[InitialTokens], bases: Sequence[Base]) -> list[RawTensor]:
    """For each word (tokens, width) float32: its base's rows where the ids are -1, else the vocabulary's."""
    counts = [len(tokens.ids) for tokens in made]
    ids = torch.tensor([one for tokens in made for one in tokens.ids], device=encoder.table.device)
    rows = encoder.table[ids.clamp(min=0)].float()
    for part, tokens, base in zip(rows.split(counts), made, bases, strict=True):
        if encoder.key in base:
            part[: tokens.kept] = _kept(base[encoder.key], tokens.kept).to(rows)
    return to_raw_each(rows, counts)


def _kept(base: RawTensor, count: int) -> Tensor:
    rows = from_raw(base)[:count]
    if not bool(torch.isfinite(rows).all()):
        raise StageError("the base holds values that are not finite")
    return rows
