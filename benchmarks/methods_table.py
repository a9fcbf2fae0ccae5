"""METHODS.md: what `methods.py` and `loss.py` measured."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import mean, median, stdev
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

LOSS_HEAD = """
## Loss of held-out images

Written from `python benchmarks/loss.py`, which trains an embedding of two vectors for 300 steps of up to four images:
with `plain`, a loop that does what diffusers' `textual_inversion.py` does, and with our train stage; every other way
changes one setting. All start from the same vectors, and have the same ten images, captions and learning rate. The loss
is the mean squared error on 40 images that were not trained on, each with the same six noises and timesteps. Mean over
the seeds, with its standard error.

- **At the same settings there is no difference** on the emblem: the means of `plain` and `ours` are as far apart as
  their errors. Batches are not a cause: ten images are 4-3-3 here, 1,000 in 300 steps, where the script repeats its
  images a hundred times and takes 1,200; batches of four (`repeats = 2`) give the same loss, and so does `plain` with
  4-3-3.
- **What raises the loss is `preserve_norm`**: `"initial"` a little, `"median"` (OneTrainer's rule) more. Free norms
  grow to several times the vocabulary's, and captions like those trained on gain by it; a kept norm is meant for other
  prompts, which this loss does not see. The shipped recipe quickstart keeps the initial norm, so a comparison of it
  with the script compares norms. The default of a train stage is free norms, as in the script.
- On the salmon heart, a colour that the model never saw, there is no difference at the same learning rate either: the
  loss of `ours` is 0.0002 ± 0.0003 higher.
- At three times the learning rate, on the two-tone square, which embeddings alone cannot draw, the loss after the last
  step varies much between seeds. That of `ours` is higher in four of five seeds, by 0.022 ± 0.013 on average, a tenth
  of the loss: `ours` may be worse there, which five seeds do not decide. Why is not known: of the ways that change one
  setting only `preserve_norm` was tried there.
- Clipping at 1 is never active here (the same digits without it). Weight decay of 0.01, flips, and padding the initial
  text with `*` instead of repeating it change the loss by about a hundredth or less, in the few seeds that were tried.
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


def loss_markdown(rows: list[dict[str, Any]], order: Iterable[str]) -> str:
    """The section about the loss of held-out images, a table for each subject and learning rate; empty without rows."""
    parts = [LOSS_HEAD] if rows else []
    for subject, rate in dict.fromkeys((row["subject"], row["rate"]) for row in rows):
        parts.append(f"\n### {subject}, learning rate {rate:g}\n\n")
        parts.append("| way | seeds | loss | lowest to highest | mean norm |\n|---|---|---|---|---|\n")
        for way in order:
            same = [row for row in rows if (row["subject"], row["rate"], row["way"]) == (subject, rate, way)]
            if same:
                losses = [row["loss"] for row in same]
                error = f" ± {stdev(losses) / len(losses) ** 0.5:.4f}" if len(losses) > 1 else ""
                ends, norm = f"{min(losses):.4f} to {max(losses):.4f}", mean(row["norm"] for row in same)
                parts.append(f"| {way} | {len(same)} | {mean(losses):.4f}{error} | {ends} | {norm:.2f} |\n")
    return "".join(parts)


def spread(name: str, values: list[float]) -> str:
    """`12.7 (11.0 to 13.9)`; the share of recognisable images in per cent."""
    show = "{:.0%}" if name == "recognisable" else "{:.1f}"
    middle, low, high = (show.format(value) for value in (median(values), min(values), max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"
