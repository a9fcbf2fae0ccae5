"""Stage `inject`: the words become usable, and trainable, in the loaded model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ...converters.embedding import Contents, Embedding
from ..embeddings.injection import Encoder, Injection, WordRows
from ..errors import StageError
from ..run.context import Run
from ..tensors import vectors_of_all


def inject(run: Run, contents: Contents, *, encoders: Sequence[str] | None = None) -> Contents:
    """Put the words into the encoders (changes the model; `Run.eject` restores it).

    With `encoders` only these get them: the words have no vectors for the others, which leave them out of the text.
    """
    if not contents.embeddings:
        raise StageError("there is no word to inject: put a tokenize stage before this one")
    if run.injection is not None:
        raise StageError("the words are in the model already: one inject stage is enough")
    contents = _only(run, contents, encoders)
    rows = {encoder.key: _rows(encoder, contents.embeddings, run.model.device) for encoder in run.model.encoders}
    run.start = _only(run, run.start, encoders)
    run.injection = Injection(run.model.pipe, run.model.encoders, rows)
    return contents


def _rows(encoder: Encoder, words: Sequence[Embedding], device: torch.device) -> WordRows:
    vectors = vectors_of_all(words, encoder.key, encoder.width)
    return WordRows({word.name: own for word, own in zip(words, vectors, strict=True)}, device)


def _only(run: Run, contents: Contents, encoders: Sequence[str] | None) -> Contents:
    """The words with vectors for these encoders alone. StageError when the model lacks one, or a word has none left."""
    have = [encoder.key for encoder in run.model.encoders]
    strange = [key for key in encoders or () if key not in have]
    if strange:
        raise StageError(f"encoders: the model has no {', '.join(strange)}; it has {', '.join(have)}")

    if encoders is None and all(word.vectors.keys() <= set(have) and word.vectors for word in contents.embeddings):
        return contents

    def part(word: Embedding) -> Embedding:
        kept = {key: raw for key, raw in word.vectors.items() if key in have and (encoders is None or key in encoders)}
        if not kept:
            raise StageError(
                f"{word.name}: has vectors for {', '.join(word.vectors)} only, so nothing would be injected"
            )
        return replace(word, vectors=kept)

    return replace(contents, embeddings=tuple(part(word) for word in contents.embeddings))
