"""Bytes for people."""

from __future__ import annotations


def size(count: float) -> str:
    """Bytes for people: `3.2 GiB`."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"
