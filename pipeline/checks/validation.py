"""Checks of [validation], and of the keys of stages that need it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..data.captions import Captioned
from ..data.holdout import held_out
from ..embeddings.placeholders import Replacer
from ..errors import StageError
from ..recipe.model import Recipe
from ..recipe.options import ExportOptions, TrainOptions
from ..recipe.problem import Finding, KeyPath
from .concepts import image_findings
from .masks import mask_findings

WHERE: KeyPath = ("validation",)


def validation_findings(recipe: Recipe, captioned: Sequence[Captioned], *, look: bool = True) -> Iterator[Finding]:
    """Checks of [validation]; `captioned` are the images of the concepts, empty where they are unknown.

    With look = False no image is opened.
    """
    spec = recipe.validation
    if spec is None:
        yield from _needless_findings(recipe)
        return
    if (spec.share is None) == (spec.concept is None):
        yield Finding(WHERE, "give either share, or concept = { images = a folder }")
    if spec.every.unit == "never":
        yield Finding((*WHERE, "every"), "'never' has no effect; remove [validation]")
    if spec.every.by_time:
        text = f"'{spec.every}' would depend on the speed of the machine; use steps, epochs or %"
        yield Finding((*WHERE, "every"), text)
    if spec.concept is not None:
        yield from _concept_findings(recipe, look)
    elif spec.share is not None and captioned and all(one.images for one in captioned):
        try:
            held_out(recipe, [[texts for _, texts in one.images] for one in captioned])
        except StageError as error:
            yield Finding((*WHERE, "share"), str(error).removeprefix("validation.share: "))


def _concept_findings(recipe: Recipe, look: bool) -> Iterator[Finding]:
    concept = recipe.validation.concept if recipe.validation else None
    assert concept is not None
    where = (*WHERE, "concept")
    if any(concept.images == other.images for other in recipe.concepts):
        yield Finding((*where, "images"), "these images are trained, by a [[concept]]; use another folder, or share")
    if concept.generate is not None:
        yield Finding((*where, "generate"), "images for validation are not generated; remove it")
        return
    own, read = replace(recipe, concepts=(replace(concept, prior=False),)), list[Captioned]()
    found = list(image_findings(own, read, look=look))
    found += mask_findings(own, read) if look else ()
    for finding in found:
        yield finding._replace(path=(*where, *finding.path[2:]))
    replacer = Replacer(list(recipe.trained))
    captions = [caption for one in read for _, texts in one.images for caption in texts]
    if recipe.trained and captions and not any(map(replacer.embeddings_in, captions)):
        text = "no caption contains a placeholder, so their loss does not depend on the embeddings; add it"
        yield Finding((*where, "captions"), text, "warning")


def _needless_findings(recipe: Recipe) -> Iterator[Finding]:
    """Keys of stages without a [validation] that they need."""
    text = "needs [validation]; add it, or remove"
    for index, options in recipe.stages_with(TrainOptions):
        if options.stop_when is not None:
            yield Finding(("stage", index, "stop_when"), f"stop_when {text} stop_when")
    for index, exported in recipe.stages_with(ExportOptions):
        if exported.from_ == "best":
            yield Finding(("stage", index, "from"), f"from = 'best' {text} from")
