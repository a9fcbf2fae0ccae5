"""METHODS.md: what `methods.py` measured, as medians over the seeds with the lowest and the highest of them."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from typing import Any

COLUMNS = ("near", "hits", "drift", "others")
HEAD = """# What each method learns

Written by `python benchmarks/methods.py` on the micro model; the recipes are in `methods_recipes.py`. Every method
takes {steps} steps of four images, on the same ten images of the thing; a method of two stages takes half of them
in each, unless its row says otherwise. Learning rates and the LoRA are the same in all methods that have them, and were
chosen on the two-tone square with seed 0. Median over the seeds (lowest to highest); a seed's value is that of {count}
images for each prompt, drawn from the exported files.

- **near**: distance from 0 to 255 of the embedding's images to the thing as it is drawn. Below 25 a viewer sees the
  same; **hits** is the share of images below it.
- **drift**: how far images of other prompts (two of other things, one of a purple square) went, from 0 to 255 a
  pixel, from those of the base model at the same seeds; **others**: mean distance of the same images to what
  their prompts say. Embeddings alone change nothing of the model: their row shows what the base model draws.
"""


def markdown(rows: list[dict[str, Any]], order: Iterable[str]) -> str:
    """The page for these rows, a table for each thing, methods in this order."""
    parts = [HEAD.format(**rows[0])]
    for thing in dict.fromkeys(row["thing"] for row in rows):
        parts.append(f"\n## {thing}\n\n| method | seeds | near | hits | drift | others |\n|---|---|---|---|---|---|\n")
        for method in order:
            same = [row for row in rows if (row["thing"], row["method"]) == (thing, method)]
            if same:
                cells = (spread(name, [row[name] for row in same]) for name in COLUMNS)
                parts.append(f"| {method} | {len(same)} | {' | '.join(cells)} |\n")
    return "".join(parts)


def spread(name: str, values: list[float]) -> str:
    """`12.7 (11.0 to 13.9)`; hits in per cent."""
    show = "{:.0%}" if name == "hits" else "{:.1f}"
    middle, low, high = (show.format(value) for value in (median(values), min(values), max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"
