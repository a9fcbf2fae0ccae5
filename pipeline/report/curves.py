"""Curves of metrics.jsonl as SVG drawings for a page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Array = npt.NDArray[np.float64]
Json = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Line:
    """One curve; `x` counts steps through all train stages."""

    label: str
    x: Array
    y: Array


def positions(metrics: list[Json]) -> tuple[Array, list[float]]:
    """The step of each row of metrics, counted through all stages, and where later stages begin."""
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
    """One value for each step; NaN where a step has none."""
    return np.array([_number(row.get(key)) for row in metrics], dtype=float)


def smoothed(y: Array, window: int) -> Array:
    """Centred moving mean of finite values, with a shorter window near the ends."""
    finite = np.isfinite(y)
    total = np.concatenate([[0.0], np.cumsum(np.where(finite, y, 0.0))])
    count = np.concatenate([[0], np.cumsum(finite)])
    here = np.arange(len(y))
    low, high = np.maximum(here - window // 2, 0), np.minimum(here + window // 2 + 1, len(y))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((total[high] - total[low]) / (count[high] - count[low]))


def thinned(line: Line, points: int) -> Line:
    """At most this many points, with the first and the last."""
    if len(line.x) <= points:
        return line
    pick = np.unique(np.linspace(0, len(line.x) - 1, points).round().astype(int))
    return Line(line.label, line.x[pick], line.y[pick])


def vector_lines(metrics: list[Json], x: Array, what: str) -> dict[str, list[Line]]:
    """For each text encoder the curve of every vector's `what` (`norm` or `distance`), in order of appearance."""
    found: dict[str, dict[tuple[str, int], list[tuple[float, float]]]] = {}
    embeddings: dict[str, None] = {}
    for at, row in zip(x, metrics, strict=True):
        for embedding, encoders in (row.get("embeddings") or {}).items():
            embeddings[embedding] = None
            for encoder, measured in encoders.items():
                for n, value in enumerate(measured.get(what) or ()):
                    found.setdefault(encoder, {}).setdefault((embedding, n), []).append((at, _number(value)))
    return {encoder: list(_lines(curves, len(embeddings))) for encoder, curves in found.items()}


def _lines(curves: dict[tuple[str, int], list[tuple[float, float]]], embeddings: int) -> Iterable[Line]:
    vectors = {embedding: n + 1 for embedding, n in sorted(curves)}
    for (embedding, n), points in curves.items():
        alone = embedding if vectors[embedding] == 1 else f"{embedding} {n + 1}"
        yield Line(f"vector {n + 1}" if embeddings == 1 else alone, *np.array(points, dtype=float).T)


def envelope(lines: list[Line]) -> tuple[Line, Line, Line]:
    """Lowest, median and highest of many curves at every step that any of them has."""
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


SIZE = (6.2, 3.5)  # inches of 72 points, which are pixels on the page
MARGINS = {"left": 0.135, "right": 0.985, "top": 0.94, "bottom": 0.15}  # measuring them would take as long as drawing
POINTS = 500  # a curve
SINGLE = 8  # curves with a colour each; more are drawn as a band and its median

# Colours of the drawing, and the CSS variables of the page that replace them.
INK, FAINT, BAND = "#000001", "#000002", "#000003"
SERIES = tuple(f"#0000{n:02x}" for n in range(0x10, 0x10 + SINGLE))
CSS = {INK: "var(--ink)", FAINT: "var(--rule)", BAND: "var(--band)"}
CSS |= {colour: f"var(--c{n})" for n, colour in enumerate(SERIES)}

SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "pivotune",
    "text.usetex": False,
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 1,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.labelcolor": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.major.pad": 6,
    "ytick.major.pad": 6,
    "axes.formatter.useoffset": False,
    "axes.unicode_minus": True,
}


def noisy_curve(name: str, title: str, x: Array, y: Array, borders: list[float]) -> Markup:
    """Every step light, the running mean dark; outliers may lie outside the frame, so that the rest is readable."""

    def draw(axes: Axes) -> None:
        raw = thinned(Line("", x, y), 2 * POINTS)
        mean = thinned(Line("", x, smoothed(y, max(1, len(y) // 12))), POINTS)
        axes.plot(raw.x, raw.y, color=SERIES[0], linewidth=0.8, alpha=0.3)
        axes.plot(mean.x, mean.y, color=SERIES[0], linewidth=2.2, marker="o" if len(x) == 1 else None)
        finite = y[np.isfinite(y)]
        if len(finite) > 1:
            low, high = float(finite.min()), float(np.quantile(finite, 0.985))
            room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
            axes.set_ylim(low - room, high + room)
        _borders(axes, borders)

    return _svg(name, title, draw)


def vector_curves(
    name: str, title: str, lines: list[Line], borders: list[float], band: dict[str, float], *, from_zero: bool = True
) -> Markup:
    """One curve for each vector, or a band of many; `band` is the vocabulary's low, median, high.

    Without a band the axis begins at 0 (`from_zero`).
    """

    def draw(axes: Axes) -> None:
        if band:
            axes.axhspan(band["low"], band["high"], color=BAND, linewidth=0)
            axes.axhline(band["median"], color=INK, linewidth=1, linestyle=(0, (4, 3)))
        if len(lines) <= SINGLE:
            for colour, line in zip(SERIES, lines, strict=False):
                thin = thinned(line, POINTS)
                axes.plot(thin.x, thin.y, color=colour, linewidth=2, marker="o" if len(thin.x) == 1 else None)
        else:
            low, middle, high = (thinned(line, POINTS) for line in envelope(lines))
            axes.fill_between(low.x, low.y, high.y, color=SERIES[0], alpha=0.25, linewidth=0)
            axes.plot(middle.x, middle.y, color=SERIES[0], linewidth=2)
        if not band and from_zero:
            axes.set_ylim(bottom=0)
        _borders(axes, borders)

    return _svg(name, title, draw)


def _borders(axes: Axes, borders: list[float]) -> None:
    for border in borders:
        axes.axvline(border, color=INK, linewidth=1, alpha=0.5, linestyle=(0, (1, 2)))


def _svg(name: str, title: str, draw: Callable[[Axes], None]) -> Markup:
    """A figure with default settings, whatever the user's matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        figure = Figure(figsize=SIZE)
        figure.subplots_adjust(**MARGINS)
        FigureCanvasSVG(figure)
        figure.patch.set_visible(False)
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        axes.set_xlabel("step")
        axes.margins(x=0.015)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _for_a_page(buffer.getvalue(), name, title)


def _for_a_page(svg: str, name: str, title: str) -> Markup:
    """The SVG element alone, with ids that are unique in the page, and the page's colours and fonts."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r'xlink:href="#', f'href="#{name}-', svg)
    svg = re.sub(r"font: [^;\"]*;?|font-family: [^;\"]*;?", "", svg)
    svg = re.sub("#0000[0-9a-f]{2}", lambda match: CSS.get(match[0], match[0]), svg)
    width, height = (72 * edge for edge in SIZE)
    head = f'<svg class="chart" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(title)}">'
    return Markup(re.sub(r"<svg[^>]*>", head, svg, count=1))
