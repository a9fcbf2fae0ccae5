"""Stage `inject`: the words become usable, and trainable, in the loaded model."""

from __future__ import annotations

from ...converters.embedding import Contents
from ..errors import StageError
from ..run.state import Run
from ..words.injection import Injection
from ..words.raw import from_raw
from ..words.rows import WordRows


def inject(run: Run, contents: Contents) -> Contents:
    """Put the words into the encoders (changes the model; `Run.eject` restores it)."""
    if not contents.embeddings:
        raise StageError("there is no word to inject: put a tokenize stage before this one")
    rows = {
        encoder.key: WordRows(
            {word.name: from_raw(word.vectors[encoder.key]) for word in contents.embeddings}, run.model.device
        )
        for encoder in run.model.encoders
    }
    if run.injection is not None:
        raise StageError("the words are in the model already: one inject stage is enough")
    run.injection = Injection(run.model.pipe, run.model.encoders, rows)
    return contents
