"""From the lines of metrics.jsonl to arrays that can be drawn."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Json = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Line:
    """One curve; `x` counts steps through all train stages."""

    label: str
    x: Array
    y: Array


def positions(metrics: list[Json]) -> tuple[Array, list[float]]:
    """Where each line of the metrics stands when the stages are put end to end, and where a later stage begins."""
    x = np.empty(len(metrics))
    offset, last, stage, borders = 0.0, 0.0, None, []
    for i, row in enumerate(metrics):
        if stage is not None and row["stage"] != stage:
            offset += last
            borders.append(offset)
        stage, last = row["stage"], float(row["step"])
        x[i] = offset + last
    return x, borders


def column(metrics: list[Json], key: str) -> Array:
    """One value a step; not a number where a step has none."""
    return np.array([_number(row.get(key)) for row in metrics], dtype=float)


def smoothed(y: Array, window: int) -> Array:
    """Centred moving mean that leaves out what is not finite; near the ends it takes the steps that are there."""
    finite = np.isfinite(y)
    total = np.concatenate([[0.0], np.cumsum(np.where(finite, y, 0.0))])
    count = np.concatenate([[0], np.cumsum(finite)])
    here = np.arange(len(y))
    low, high = np.maximum(here - window // 2, 0), np.minimum(here + window // 2 + 1, len(y))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((total[high] - total[low]) / (count[high] - count[low]))


def thinned(line: Line, points: int) -> Line:
    """At most so many points, the first and the last among them."""
    if len(line.x) <= points:
        return line
    pick = np.unique(np.linspace(0, len(line.x) - 1, points).round().astype(int))
    return Line(line.label, line.x[pick], line.y[pick])


def vector_lines(metrics: list[Json], x: Array, what: str) -> dict[str, list[Line]]:
    """For each encoder the curve of every vector's `what` (`norm` or `moved`), words in the order they appear."""
    found: dict[str, dict[tuple[str, int], list[tuple[float, float]]]] = {}
    words: dict[str, None] = {}
    for at, row in zip(x, metrics, strict=True):
        for word, encoders in (row.get("words") or {}).items():
            words[word] = None
            for encoder, measured in encoders.items():
                for n, value in enumerate(measured.get(what) or ()):
                    found.setdefault(encoder, {}).setdefault((word, n), []).append((at, _number(value)))
    return {encoder: list(_lines(curves, len(words))) for encoder, curves in found.items()}


def _lines(curves: dict[tuple[str, int], list[tuple[float, float]]], words: int) -> Iterable[Line]:
    vectors = {word: n + 1 for word, n in sorted(curves)}
    for (word, n), points in curves.items():
        alone = word if vectors[word] == 1 else f"{word} {n + 1}"
        yield Line(f"vector {n + 1}" if words == 1 else alone, *np.array(points, dtype=float).T)


def envelope(lines: list[Line]) -> tuple[Line, Line, Line]:
    """Lowest, middle and highest of many curves at every step that any of them has."""
    at: dict[float, list[float]] = {}
    for line in lines:
        for x, y in zip(line.x, line.y, strict=True):
            if np.isfinite(y):
                at.setdefault(float(x), []).append(float(y))
    x = np.array(sorted(at), dtype=float)
    low, middle, high = (
        Line(name, x, np.array([measure(at[v]) for v in x], dtype=float))
        for name, measure in (("lowest", min), ("median", np.median), ("highest", max))
    )
    return low, middle, high


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else float("nan")
