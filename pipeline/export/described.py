"""What files of a run's words say of themselves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ...converters.embedding import Contents
from ..run.state import Run


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
    words = tuple(
        replace(word, metadata=facts | {"pivotune.initial_text": word.metadata.get("initial_text", "")})
        for word in contents.embeddings
    )
    return replace(contents, embeddings=words)


def _name(base: str) -> str:
    return Path(base).name if Path(base).exists() or Path(base).is_absolute() else base
