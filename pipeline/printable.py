"""Text of strangers on one line."""

from __future__ import annotations


def shortened(text: str, most: int = 60) -> str:
    """A text cut where it gets too long for a message."""
    return text if len(text) <= most else text[: most - 1] + "…"


def printable(text: str) -> str:
    """The text with control characters spelled out: recipes and captions of strangers must not steer a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
