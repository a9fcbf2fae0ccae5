"""Stage `tokenize`: each word's initial text, or its base, becomes its first vectors, per encoder."""

from __future__ import annotations

import torch
from torch import Tensor

from ...converters.embedding import Contents, Embedding
from ...converters.tensor import RawTensor
from ..errors import StageError
from ..recipe.model import Word
from ..run.hashes import sha256
from ..run.state import Run
from ..words.base import start_of, start_tokens
from ..words.initial import InitialTokens
from ..words.injection import Encoder
from ..words.raw import from_raw, to_raw


def tokenize(run: Run, contents: Contents, *, pad_with: str = "*") -> Contents:
    """One embedding a word: its base's vectors or the vocabulary's of its initial text, cut or padded to its count."""
    words = tuple(_first_vectors(run, word, pad_with) for word in run.recipe.words)
    run.start = Contents(words, contents.rest, contents.metadata)
    return run.start


def _first_vectors(run: Run, word: Word, pad_with: str) -> Embedding:
    encoders = {encoder.key: encoder for encoder in run.model.encoders}
    base = start_of(word, list(encoders), {key: encoder.width for key, encoder in encoders.items()})
    vectors = {}
    for key, encoder in encoders.items():
        try:
            tokens = start_tokens(encoder.tokenizer, word, pad_with, base, key)
        except ValueError as error:
            raise StageError(f"{word.placeholder}: {error}") from error
        run.initial.setdefault(word.placeholder, {})[key] = tokens
        vectors[key] = to_raw(_rows(tokens, encoder, base.get(key)))
        if tokens.cut:
            what = "initial text" if key not in base else "base"
            lost = f"cut to {len(tokens.ids)} tokens in {key}, without {' '.join(tokens.cut)}"
            run.warnings.append(f"{word.placeholder}: {what} is {lost}")
    if word.base is not None:
        run.notes.append(f"{word.placeholder} goes on from {word.base.name} (sha256 {sha256(word.base)})")
        without = [key for key in encoders if key not in base]
        if without:
            said = f"{word.base.name} has no vectors for {', '.join(without)}, which start from the initial text"
            run.warnings.append(f"{word.placeholder}: {said}")
    return Embedding(word.placeholder, vectors, {"initial_text": word.initial_text})


def _rows(tokens: InitialTokens, encoder: Encoder, base: RawTensor | None) -> Tensor:
    """(tokens, width) float32: the base's rows where the ids are -1, else the vocabulary's."""
    ids = torch.tensor(tokens.ids, device=encoder.table.device)
    rows = encoder.table[ids.clamp(min=0)].float()
    if base is not None:
        kept = from_raw(base)[: tokens.kept].to(rows)
        if not bool(torch.isfinite(kept).all()):
            raise StageError("the base holds values that are not finite")
        rows[ids < 0] = kept
    return rows
