"""Values as the page shows them."""

from __future__ import annotations

import math
from typing import Any


def number(value: Any, digits: int = 3) -> str:
    """So many significant digits, never in a form that only programmers read; a dash where there is none."""
    if not isinstance(value, (int, float)):
        return "–"
    if not math.isfinite(value):
        return "not finite"
    if value and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}e}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value)))) if value else digits - 1
    return f"{value:,.{min(places, 6)}f}".replace("-", "−")


def duration(seconds: Any) -> str:
    """As one would say it."""
    if not isinstance(seconds, (int, float)) or not math.isfinite(seconds):
        return "–"
    if seconds < 0.1:
        return "< 0.1 s"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02d} min"


def size(count: Any) -> str:
    """Bytes in units of 1024."""
    if not isinstance(count, (int, float)):
        return "–"
    value = float(count)
    for unit in ("bytes", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def gauge(rows: list[dict[str, Any]], usual: dict[str, float]) -> dict[str, Any]:
    """Where norms stand on one scale for all vectors of an encoder, in percent; nothing without a vocabulary."""
    values = [row[key] for row in rows for key in ("norm_before", "norm_after")]
    known = [float(v) for v in values if isinstance(v, (int, float)) and math.isfinite(v)]
    if not usual or not known:
        return {}
    bottom, top = min(usual["low"], *known), max(usual["high"], *known)
    room = 0.15 * (top - bottom) or 1.0
    bottom, top = bottom - room, top + room

    def at(value: Any) -> float | None:
        fits = isinstance(value, (int, float)) and math.isfinite(value)
        return round(100 * (float(value) - bottom) / (top - bottom), 2) if fits else None

    low, median, high = (at(usual[name]) or 0.0 for name in ("low", "median", "high"))
    marks = [(at(row["norm_before"]), at(row["norm_after"])) for row in rows]
    return {"low": low, "width": round(high - low, 2), "median": median, "marks": marks}
