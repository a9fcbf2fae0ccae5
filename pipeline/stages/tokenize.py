"""Stage `tokenize`: the initial text of each word becomes its first vectors, per encoder."""

from __future__ import annotations

import torch

from ...converters.embedding import Contents, Embedding
from ..errors import StageError
from ..recipe.model import Word
from ..run.state import Run
from ..words.initial import tokenize_initial
from ..words.raw import to_raw


def tokenize(run: Run, contents: Contents, *, pad_with: str = "*") -> Contents:
    """One embedding a word: the vocabulary's vectors of its initial text, cut or padded to its token count."""
    words = tuple(_first_vectors(run, word, pad_with) for word in run.recipe.words)
    run.start = Contents(words, contents.rest, contents.metadata)
    return run.start


def _first_vectors(run: Run, word: Word, pad_with: str) -> Embedding:
    vectors = {}
    for encoder in run.model.encoders:
        try:
            tokens = tokenize_initial(encoder.tokenizer, word.initial_text, word.tokens, pad_with)
        except ValueError as error:
            raise StageError(f"{word.placeholder}: {error}") from error
        run.initial.setdefault(word.placeholder, {})[encoder.key] = tokens
        ids = torch.tensor(tokens.ids, device=encoder.table.device)
        vectors[encoder.key] = to_raw(encoder.table[ids].float())
        if tokens.cut:
            lost = f"cut to {len(tokens.ids)} tokens in {encoder.key}, without {' '.join(tokens.cut)}"
            run.warnings.append(f"{word.placeholder}: initial text is {lost}")
    return Embedding(word.placeholder, vectors, {"initial_text": word.initial_text})
