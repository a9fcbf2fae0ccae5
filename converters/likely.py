"""The families of models that a file may be for, all of them, for those who only look."""

from __future__ import annotations

from .embedding import Contents
from .embeddings import own_embeddings
from .families import Family, all_families
from .lora_layout import LoraInfo
from .read import families_of, stated_family


def likely_families(contents: Contents, dialect: str | None, lora: LoraInfo | None) -> list[Family]:
    """Families that fit all embeddings and the LoRA, the likeliest first; the one that embeddings of ours state, where
    it may be.

    That one has the widths of the embeddings, which may be those of a small model.
    """
    names = _of_embeddings(contents, dialect)
    if lora is not None:
        names = [name for name in lora.families if name in names or not contents.embeddings] or names
    own = stated_family(own_embeddings(contents)) if len(names) != 1 else None
    if own is not None and own.name in (names or [own.name]):
        return [own]
    return [all_families()[name] for name in names]


def _of_embeddings(contents: Contents, dialect: str | None) -> list[str]:
    found: list[str] | None = None
    for embedding in contents.embeddings:
        own = families_of(embedding, dialect)
        found = own if found is None else [name for name in found if name in own]
    return found or []
