"""METHODS.md: what `methods.py` measured, as medians over the seeds with the lowest and the highest of them."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from typing import Any

from pivotune.recipes.micro.judge import HIT

COLUMNS = {
    "distance": "distance to the subject", "recognisable": "recognisable", "drift": "drift of other prompts",
    "other_distance": "distance of other prompts",
}  # fmt: skip
HEAD = """# Training methods compared

Written by `python benchmarks/methods.py` on the micro model; the recipes are in `methods_recipes.py`. Every method
takes {steps} steps of four images, on the same ten images of the subject; a method of two stages takes half of them
in each, unless its row says otherwise. Learning rates and the LoRA are the same in all methods that have them, and were
chosen on the two-tone square with seed 0. Median over the seeds (lowest to highest); a seed's value is that of {count}
images for each prompt, drawn from the exported files.

- **distance to the subject**: mean difference, from 0 (the same) to 255, between images drawn with the embedding and
  the subject. Lower is better.
- **recognisable**: share of these images with a distance below {hit:g}, where a viewer sees the same subject.
- **drift of other prompts**: mean difference, from 0 to 255 per pixel, between images of prompts without the embedding
  (two of other subjects, one of a purple square) and those of the base model with the same seeds. Lower is better.
- **distance of other prompts**: distance of the same images to what their prompts describe. Embeddings alone do not
  change the model, so their row shows the base model.
"""


def markdown(rows: list[dict[str, Any]], order: Iterable[str]) -> str:
    """The page for these rows, a table for each subject, methods in this order."""
    parts = [HEAD.format(**rows[0], hit=HIT)]
    for subject in dict.fromkeys(row["subject"] for row in rows):
        parts.append(
            f"\n## {subject}\n\n| method | seeds | {' | '.join(COLUMNS.values())} |\n|---|---|---|---|---|---|\n"
        )
        for method in order:
            same = [row for row in rows if (row["subject"], row["method"]) == (subject, method)]
            if same:
                cells = (spread(name, [row[name] for row in same]) for name in COLUMNS)
                parts.append(f"| {method} | {len(same)} | {' | '.join(cells)} |\n")
    return "".join(parts)


def spread(name: str, values: list[float]) -> str:
    """`12.7 (11.0 to 13.9)`; the share of recognisable images in per cent."""
    show = "{:.0%}" if name == "recognisable" else "{:.1f}"
    middle, low, high = (show.format(value) for value in (median(values), min(values), max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"
