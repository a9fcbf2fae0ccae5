"""Checks of masks that exclude everything: black files, and images that are transparent everywhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from ..data.captions import Captioned
from ..errors import StageError
from ..recipe.model import Concept, Recipe
from ..recipe.options import TrainOptions
from ..recipe.problem import Finding
from ..text import first_few

SECONDS = 1.0  # for decoding masks; a run finds the rest
LISTED = 3
INVERT = "white is where the loss counts"


def mask_findings(recipe: Recipe, captioned: list[Captioned]) -> Iterator[Finding]:
    """An error where no image counts anywhere, a warning about other black masks."""
    options = [options.objective for _, options in recipe.stages_with(TrainOptions)]
    if not options:
        return
    excluded = any(one.unmasked_weight == 0 and one.masked_prior_weight == 0 for one in options)
    weight = min(one.unmasked_weight for one in options)
    effect = "the loss counts nowhere" if excluded else f"the loss has a weight of {weight:g} everywhere"
    end, found = time.monotonic() + SECONDS, dict[int, list[Path]]()
    counts = False  # whether an image counts somewhere
    for index, (concept, read) in enumerate(zip(recipe.concepts, captioned, strict=True)):
        found[index] = list(_black_masks(concept, read, end))
        counts |= not concept.prior and len(found[index]) < len(read.images)
    for index, black in found.items():
        if not black:
            continue
        where, names = ("concept", index, "masks"), first_few([path.name for path in black], LISTED)
        all_images = len(black) == len(captioned[index].images)
        share = f"all {len(black)}" if all_images else f"{len(black)} of {len(captioned[index].images)}"
        text = f"the masks of {share} images are black ({names}): {effect} in them; {INVERT}"
        if all_images:
            text += "; invert them, or set masks = 'none'"
        yield Finding(where, text, "warning" if counts or not excluded else "error")


def _black_masks(concept: Concept, read: Captioned, end: float) -> Iterator[Path]:
    """The masks that are black everywhere, for each image, until the time is over."""
    if not read.masks and concept.masks != "alpha":
        return  # avoids importing Pillow
    from ..data.images import open_alpha, open_image

    for image, _ in read.images:
        mask = read.masks.get(image)
        if time.monotonic() > end or (mask is None and concept.masks != "alpha"):
            continue
        try:
            opened = open_alpha(image) if mask is None else open_image(mask).convert("L")
        except StageError:
            continue  # reported by the check of images
        if opened.getbbox() is None:
            yield mask or image
