"""Whether what was trained on a model is of use with the others of its family."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..converters.families import Family

MICRO = "micro"


def fits_only(base: str, family: Family, widths: Mapping[str, int]) -> str:
    """A sentence for files from a small model, which fit no model of the family's own size; empty for those of others.

    `widths` are those of the model's text encoders, by their keys.
    """
    if all(widths.get(key, size) == size for key, size in family.widths.items()):
        return ""
    name = "the micro model that ships with Pivotune" if base == MICRO else Path(base).name
    return f"These files fit only {name}: other models of {family.title} have text encoders of other sizes."
