"""Stage `rescale`: the norms of the trained vectors are set by a rule, per encoder."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...converters.embedding import Contents, Embedding
from ..run.state import Run
from ..words.norms import apply_rule
from ..words.raw import from_raw, to_raw


def rescale(run: Run, contents: Contents, *, to: Any = "median") -> Contents:
    """Vectors scaled by `to` (see `words.norms.apply_rule`); the vocabulary's statistics are each encoder's own.

    Words with `train = false` are left as they are.
    """
    trained = {word.placeholder for word in run.recipe.words if word.train}
    start = {word.name: word for word in run.start.embeddings}
    words = [
        _rescaled(run, word, start[word.name], to) if word.name in trained else word for word in contents.embeddings
    ]
    return replace(contents, embeddings=tuple(words))


def _rescaled(run: Run, word: Embedding, start: Embedding, rule: Any) -> Embedding:
    vectors = {}
    for key, raw in word.vectors.items():
        before = from_raw(raw)
        after = apply_rule(before, rule, run.statistics[key], from_raw(start.vectors[key]))
        vectors[key] = to_raw(after)
        norms = zip(before.norm(dim=1).tolist(), after.norm(dim=1).tolist(), strict=True)
        run.notes.append(f"{word.name} {key}: norm " + ", ".join(f"{a:.3f} → {b:.3f}" for a, b in norms))
    return replace(word, vectors=vectors)
