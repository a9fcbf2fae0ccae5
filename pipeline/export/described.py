"""What files of a run's words say of themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ...converters.embedding import Contents, Embedding
from ..run.state import Run
from ..words.raw import vectors_of_all

AT_ONCE = 256  # words that are measured together: in float64, and held against their beginning, all would fill memory


def described(run: Run, contents: Contents) -> Contents:
    """The words with what made them; nothing in it changes between two runs of the same recipe, wherever they are.

    A model is called by its hub id, one on this machine by its own name alone: where it lies is nobody's business.
    """
    facts = {
        "pivotune.recipe": run.recipe.name,
        "pivotune.seed": str(run.recipe.seed),
        "pivotune.model": _name(run.recipe.model.base),
        "pivotune.family": run.model.family.name,
    }
    if run.recipe.model.clip_skip > 1:
        facts["pivotune.clip_skip"] = str(run.recipe.model.clip_skip)
    ways = _ways(run, contents.embeddings)
    words = tuple(
        replace(word, metadata=facts | {
            "pivotune.initial_text": word.metadata.get("initial_text", ""), "pivotune.moved": ", ".join(ways[word.name])
        })
        for word in contents.embeddings
    )  # fmt: skip
    return replace(contents, embeddings=words)


def _ways(run: Run, words: Sequence[Embedding]) -> dict[str, list[str]]:
    """How far each vector is from where the run began it, so that nobody wonders later whether a file learnt anything.

    In float64: four digits of it are the same whichever words are measured together.
    """
    start = run.start.by_name
    ways: dict[str, list[str]] = {word.name: [] for word in words}
    for encoder in run.model.encoders:
        held = [word for word in words if encoder.key in word.vectors]
        for at in range(0, len(held), AT_ONCE):
            some = held[at : at + AT_ONCE]
            now = vectors_of_all(some, encoder.key, encoder.width)
            began = vectors_of_all([start[word.name] for word in some], encoder.key, encoder.width)
            far = (torch.cat(now).double() - torch.cat(began).double()).norm(dim=1)
            for word, own in zip(some, far.split([len(rows) for rows in now]), strict=True):
                ways[word.name].append(" ".join([encoder.key, *(f"{way:.4g}" for way in own.tolist())]))
    return ways


def _name(base: str) -> str:
    return Path(base).name if Path(base).exists() or Path(base).is_absolute() else base
