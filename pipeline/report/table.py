"""The table of embeddings that ends a run on the command line."""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Sequence
from typing import Any

from ..text import count_of, first_few
from .embeddings import TOO_LARGE, excessive_norm, printable, rescaled, rows, start_of, usual

Json = dict[str, Any]

WIDTH = 100  # columns; more where the terminal has more
EMBEDDINGS = 50  # shown; the rest is counted
# Heading, width, and whether it is a number; the nearest tokens take what is left.
COLUMNS = (
    ("embedding", 16, False),
    ("encoder", 7, False),
    ("#", 3, True),
    ("initial", 8, False),
    ("norm", 14, True),
    ("usual", 6, True),
    ("distance", 8, True),
)
NEAREST = WIDTH - sum(width + 2 for _, width, _ in COLUMNS)
MOST_NEAREST = 60
LEGEND = "norm: before -> after; usual: the vocabulary's median norm; distance: from the initial vector"


def embedding_table(manifest: Json, width: int | None = None) -> str:
    """A line for each vector: initial token, norm before and after, the vocabulary's median norm (`usual`), distance
    from initialisation, and as many of its nearest tokens as fit; below, what the columns are.

    No line is wider than `width` columns (default: the terminal's, at least 100).
    """
    embeddings = manifest.get("embeddings") or []
    if not embeddings:
        return "no embeddings"
    columns = width or shutil.get_terminal_size((WIDTH, 24)).columns
    room = min(MOST_NEAREST, NEAREST + max(0, columns - WIDTH))
    lines = [_line([*(title for title, _, _ in COLUMNS), "nearest tokens (cosine)"])]
    lines.append("  ".join("-" * width for width in (*(width for _, width, _ in COLUMNS), room)))
    notes = []
    for embedding in embeddings[:EMBEDDINGS]:
        first = printable(embedding["placeholder"])
        for key, encoder in embedding.get("encoders", {}).items():
            median = usual(manifest, key).get("median")
            for cells in _cells(key, encoder, median, room):
                lines.append(_line([first, *cells]))
                first = ""
            notes += _notes(embedding, key, encoder)
    if len(embeddings) > EMBEDDINGS:
        lines.append(f"{count_of(len(embeddings) - EMBEDDINGS, 'more embedding')}: see report.html or manifest.json")
    return "\n".join([*lines, LEGEND, *notes, *_excessive_norms(manifest)])


def _excessive_norms(manifest: Json) -> list[str]:
    """Embeddings whose norms are far above the vocabulary's, and what to do."""
    found: dict[str, float] = {}
    for embedding in () if rescaled(manifest) else manifest["embeddings"]:
        for key, encoder in embedding.get("encoders", {}).items():
            times = excessive_norm(rows(encoder), usual(manifest, key))
            if times is not None:
                found[embedding["placeholder"]] = max(times, found.get(embedding["placeholder"], 0.0))
    if not found:
        return []
    names = first_few([printable(name) for name in found])
    return [
        _fit(f"norm up to {max(found.values()):.1f} times the vocabulary's median: {names}", WIDTH),
        f"  ({TOO_LARGE})",
    ]


def _cells(key: str, encoder: Json, median: float | None, room: int) -> list[list[str]]:
    made = []
    for row in rows(encoder):
        norm = f"{_number(row['norm_before'])} -> {_number(row['norm_after'])}"
        nearest = _whole([f"{printable(piece)} {cosine:.2f}" for piece, cosine in row["nearest"]], room)
        numbers = [norm, _number(median), _number(row["distance"])]
        made.append([key, str(row["number"]), printable(row["token"]), *numbers, nearest])
        key = ""
    return made


def _notes(embedding: Json, key: str, encoder: Json) -> list[str]:
    start = start_of(encoder)
    if not start["cut"]:
        return []
    cut = " ".join(map(printable, start["cut"]))
    return [_fit(f'{printable(embedding["placeholder"])}, {key}: initial text truncated before "{cut}"', WIDTH)]


def _line(cells: list[str]) -> str:
    made = []
    for cell, (_, width, number) in zip(cells, COLUMNS, strict=False):
        text = _fit(cell, width)
        blank = " " * (width - _columns(text))
        made.append(blank + text if number else text + blank)
    return "  ".join([*made, cells[-1]]).rstrip()


def _whole(entries: Sequence[str], room: int) -> str:
    """As many entries as fit; a first one that is too long is cut."""
    text = _fit(entries[0], room) if entries else ""
    for entry in entries[1:]:
        if _columns(text) + 2 + _columns(entry) > room:
            break
        text += f", {entry}"
    return text


def _number(value: float | None) -> str:
    """Six columns at most: three decimals, or fewer digits where the value is far from 1."""
    if value is None:
        return "-"
    text = f"{value:.3f}"
    if len(text) <= 6 and (value == 0 or abs(value) >= 0.001 or value != value):
        return text
    return f"{value:.0e}".replace("e+0", "e").replace("e-0", "e-")


def _columns(text: str) -> int:
    """Columns of a terminal: wide characters take two, marks none."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)


def _fit(text: str, width: int) -> str:
    if _columns(text) <= width:
        return text
    text = text[: 2 * width]  # names may be very long
    while _columns(text) > width - 1:
        text = text[:-1]
    return text + "…"
