"""Checks of a recipe beyond its schema: images, captions, names, order of stages. Loads no model and no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...converters.names import is_reserved
from ..data.captions import Captioned
from ..errors import RecipeError, StageError
from ..models.family import family_of
from ..recipe.document import Document
from ..recipe.form import Dropped, form_of, without_refused
from ..recipe.load import MAX_PROBLEMS, build, open_document, open_recipe, with_embeddings_from
from ..recipe.model import Recipe
from ..recipe.options import TrainOptions
from ..recipe.problem import Finding, KeyPath, Problem
from .concepts import (
    batch_findings,
    capital_findings,
    caption_source_findings,
    dropped_embedding_findings,
    image_findings,
)
from .embeddings import (
    base_findings,
    caption_findings,
    coverage,
    encoder_findings,
    name_findings,
    template_findings,
    truncation_findings,
)
from .model import (
    companion_findings,
    drawing_findings,
    family_findings,
    model_findings,
    offload_findings,
    part_findings,
    sample_findings,
    weight_findings,
)
from .stages import no_embedding_findings, order_findings, rule_findings, stage_findings
from .targets import output_findings, same_files, target_findings

NOTHING_DROPPED = Dropped()
_PARTS = {"concept": 2, "embedding": 3, "stage": 3}  # depth of the parts that are checked by themselves
_CHECKED_WITH = {  # keys of a stage that are checked together with others
    "caption_dropout": ("embeddings",),
    "locality": ("lora", "finetune"),
    "lora": ("schedule",),
    "finetune": ("lora", "schedule"),
}
MOST_EMBEDDINGS = 10  # findings of one kind about embeddings that are listed


@dataclass(frozen=True)
class Checked:
    """A recipe (None if it violates the schema), its problems, and the number of captions of each embedding."""

    recipe: Recipe | None
    problems: list[Problem]
    images: int = 0
    captions: int = 0
    captions_with: dict[str, int] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        return any(problem.severity == "error" for problem in self.problems)


def check_recipe(path_or_name: str | Path, overrides: Sequence[str] = (), *, tokens: bool = False) -> Checked:
    """All problems of a recipe: violations of its schema, and the other checks for the parts that fit the schema.

    With `tokens` also truncated embeddings, which are pre-flight checks of a run (skipped by `--force`).
    """
    return _checked(*open_recipe(path_or_name, overrides), tokens=tokens)


def check_document(document: Document, overrides: Sequence[str] = ()) -> Checked:
    """As `check_recipe`, for a recipe from a manifest."""
    return _checked(*open_document(document, overrides), tokens=False)


def _checked(recipe: Recipe | None, document: Document | None, problems: list[Problem], *, tokens: bool) -> Checked:
    if document is None:
        return Checked(None, problems)
    if recipe is None:
        return Checked(None, _sorted([*problems, *check_valid_parts(document)]))
    return check_built(recipe, document, tokens=tokens)


def check_built(
    recipe: Recipe, document: Document, dropped: Dropped = NOTHING_DROPPED, *, tokens: bool = False
) -> Checked:
    """Checks of a recipe that fits its schema, except those that depend on dropped parts."""
    captioned: list[Captioned] = []
    recipe, findings = _counted(recipe)
    findings += _findings(recipe, document, captioned, dropped)
    if tokens and not any(one.severity == "error" for one in findings):
        findings += _limit_embeddings(truncation_findings(recipe, captioned))
    problems = [document.problem(finding.path, finding.text, finding.severity) for finding in findings]
    captions = [text for concept in captioned for _, texts in concept.images for text in texts]
    return Checked(
        recipe,
        _sorted(problems),
        sum(len(concept.images) for concept in captioned),
        len(captions),
        coverage(recipe.embeddings, captions),
    )


def _counted(recipe: Recipe) -> tuple[Recipe, list[Finding]]:
    """The recipe with the steps of stages that are as long as so many epochs; the steps stay 0 where images are bad,
    which other checks find."""
    epochs = [index for index, stage in enumerate(recipe.stages) if stage.epochs is not None]
    if not epochs:
        return recipe, []
    if any(concept.generate is not None for concept in recipe.concepts):
        text = "epochs are not supported with class images that a run generates (generate): write the number of steps"
        return recipe, [Finding(("stage", index, "steps"), text) for index in epochs]
    from .survey import stated_resolution, with_steps

    stages = dict(recipe.stages_with(TrainOptions))
    unknown = [index for index in epochs if index in stages and stages[index].resolution is None]
    if unknown and stated_resolution(recipe.model) is None:
        text = "epochs cannot be counted, as the model's resolution is not known; set resolution, or model.family"
        return recipe, [Finding(("stage", index, "steps"), text) for index in unknown]
    with suppress(RecipeError, StageError):
        recipe = with_steps(recipe)
    return recipe, []


def check_valid_parts(document: Document) -> list[Problem]:
    """Checks of the parts that fit the schema, in a recipe that does not."""
    form = form_of(document.data, MAX_PROBLEMS)
    if len(form.problems) > MAX_PROBLEMS:
        return []
    data, dropped, moved = without_refused(form)
    expanded, missing = with_embeddings_from(replace(document, data=data, original_paths=moved))
    if missing:
        dropped = Dropped(dropped.key_paths | {("embeddings_from",)})
    return [*missing, *check_built(build(expanded.data, expanded.path), expanded, dropped).problems]


def _sorted(problems: list[Problem]) -> list[Problem]:
    """Sorted by line; the number of further problems comes last."""
    return sorted(dict.fromkeys(problems), key=lambda one: (not (one.line or one.key or one.file), one.line))


def checked_recipe(path_or_name: str | Path, overrides: Sequence[str] = ()) -> tuple[Recipe, list[Problem]]:
    """A recipe without errors and its warnings; RecipeError with all problems otherwise."""
    checked = check_recipe(path_or_name, overrides)
    if checked.recipe is None or checked.failed:
        raise RecipeError([problem.shown(path_or_name) for problem in checked.problems])
    return checked.recipe, checked.problems


def _findings(recipe: Recipe, document: Document, captioned: list[Captioned], dropped: Dropped) -> Iterator[Finding]:
    """All findings that are not caused by dropped parts."""
    embeddings = not dropped.lacks("embedding") and not dropped.touches("embeddings_from")
    if not dropped.lacks("stage"):
        yield from no_embedding_findings(recipe) if embeddings else ()
        yield from order_findings(recipe)
    for finding in (
        *_part_findings(recipe, captioned, dropped, embeddings),
        *_cross_findings(recipe, document, captioned, dropped, embeddings),
    ):
        if finding.path[:2] in document.origins or not _depends_on(document.original_path(finding.path), dropped):
            yield finding


def _depends_on(path: KeyPath, dropped: Dropped) -> bool:
    """Whether the part of a finding, or a part that it is checked with, was dropped."""
    part = path[: _PARTS.get(str(path[0]))]
    others = _CHECKED_WITH.get(str(part[2]), ()) if len(part) == 3 else ()
    return dropped.touches(*part) or any(dropped.touches(*part[:2], key) for key in others)


def _part_findings(recipe: Recipe, captioned: list[Captioned], dropped: Dropped, embeddings: bool) -> Iterator[Finding]:
    """Findings about the model, images, embeddings and stages, each by itself."""
    family = family_of(recipe.model)
    if is_reserved(recipe.name):
        yield Finding(("name",), f"{recipe.name!r} is a device on Windows and cannot be a folder name; rename it")
    yield from model_findings(recipe.model)
    yield from family_findings(recipe.model, family)
    yield from companion_findings(recipe.model, family)
    yield from part_findings(recipe.model, family)
    yield from weight_findings(recipe, family)
    yield from offload_findings(recipe, family)
    cut = not dropped.touches("data") and not dropped.in_stages("resolution")
    for finding in image_findings(recipe, captioned, look=cut):
        if len(finding.path) > 1 or not dropped.touches("embeddings_from"):
            yield finding
    if cut and _has_masks(recipe, captioned):
        from .masks import mask_findings

        yield from mask_findings(recipe, captioned)
    if not dropped.touches("validation") and _asks_for_validation(recipe):
        from .validation import validation_findings

        known = not any(dropped.touches(part) for part in ("concept", "embeddings_from", "embedding"))
        yield from validation_findings(recipe, captioned if known else (), look=cut)
    yield from _limit_embeddings(name_findings(recipe.embeddings))
    yield from _limit_embeddings(same_files(recipe))
    if not dropped.touches("model") and not dropped.touches("embedding"):
        yield from _limit_embeddings(base_findings(recipe, family))
    yield from caption_source_findings(recipe, captioned)
    yield from dropped_embedding_findings(recipe, captioned)
    yield from capital_findings(recipe, family)
    trained = embeddings and not dropped.touches("embedding")
    yield from stage_findings(recipe if trained else replace(recipe, embeddings=()), family)
    loras = any(options.lora for _, options in recipe.stages_with(TrainOptions))
    if loras and not dropped.touches("model") and not dropped.in_stages("lora"):
        from .lora_base import lora_base_findings

        yield from lora_base_findings(recipe, family)
    yield from rule_findings(recipe, family)
    yield from encoder_findings(recipe, family)


def _has_masks(recipe: Recipe, captioned: Sequence[Captioned]) -> bool:
    return any(one.masks for one in captioned) or any(concept.masks == "alpha" for concept in recipe.concepts)


def _asks_for_validation(recipe: Recipe) -> bool:
    """Whether there is a [validation], or a key that needs one."""
    stops = any(options.stop_when is not None for _, options in recipe.stages_with(TrainOptions))
    return recipe.validation is not None or stops or recipe.exports_best


def _cross_findings(
    recipe: Recipe, document: Document, captioned: list[Captioned], dropped: Dropped, embeddings: bool
) -> Iterator[Finding]:
    """Findings about combinations of parts."""
    if not dropped.touches("model"):
        asked = document.data.get("samples", {}).get("prompts")
        if not dropped.touches("samples"):
            yield from sample_findings(recipe, family_of(recipe.model))
        yield from drawing_findings(recipe, family_of(recipe.model), prompts=bool(asked))
    if embeddings and not dropped.touches("concept") and not dropped.in_stages("embeddings"):
        yield from _limit_embeddings(caption_findings(recipe, captioned))
    if not any(dropped.touches(part) for part in ("concept", "embeddings_from", "data")):
        yield from batch_findings(recipe, captioned)
    exports = [
        document.original_path(("stage", at)) for at, stage in enumerate(recipe.stages) if stage.kind == "export"
    ]
    if not dropped.in_stages("lora") and not any(dropped.touches(*key_path) for key_path in exports):
        yield from _limit_embeddings(target_findings(recipe, family_of(recipe.model)))
        yield from _limit_embeddings(output_findings(recipe, family_of(recipe.model)))
        yield from _limit_embeddings(template_findings(recipe.embeddings, family_of(recipe.model)))


def _limit_embeddings(findings: Iterator[Finding]) -> Iterator[Finding]:
    """The first findings about embeddings of each severity, and the number of the rest."""
    counts: Counter[str] = Counter()
    last: dict[str, Finding] = {}
    for finding in findings:
        if finding.path[0] != "embedding" or counts[finding.severity] < MOST_EMBEDDINGS:
            yield finding
        if finding.path[0] == "embedding":
            counts[finding.severity] += 1
            last[finding.severity] = finding
    for severity, count in counts.items():
        if count > MOST_EMBEDDINGS:
            text = f"and {count - MOST_EMBEDDINGS:,} more of this kind; this is the last"
            yield Finding(last[severity].path, text, severity)
