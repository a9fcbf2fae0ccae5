"""What a schema cannot see: images, captions, names, the order of stages. Needs no torch and loads no model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...converters.names import is_reserved
from ..data.captions import Captioned
from ..errors import RecipeError
from ..models.family import family_of
from ..recipe.document import Document
from ..recipe.embeddings_from import with_many_embeddings
from ..recipe.form import Dropped, form_of, without_refused
from ..recipe.load import MOST, build, open_document, open_recipe
from ..recipe.model import Recipe
from ..recipe.problem import Finding, Place, Problem
from .concepts import batch_findings, capital_findings, image_findings, shown_embedding_findings
from .embeddings import base_findings, caption_findings, coverage, encoder_findings, name_findings, unseen_findings
from .model import layer_findings, model_findings
from .stages import no_embedding_findings, order_findings, rule_findings, stage_findings
from .targets import same_files, target_findings

NOTHING = Dropped()
_PARTS = {"concept": 2, "embedding": 3, "stage": 3}  # what is checked for itself: a [[concept]], a key of a [[stage]]
_RESTS_ON = {  # keys of a stage that are checked together with others
    "caption_dropout": ("embeddings",),
    "locality": ("lora", "finetune"),
    "lora": ("schedule",),
    "finetune": ("lora", "schedule"),
}
MOST_EMBEDDINGS = 10  # findings of one kind about embeddings that are listed


@dataclass(frozen=True)
class Checked:
    """A recipe (None where its form is wrong), its problems, and how many captions hold each embedding."""

    recipe: Recipe | None
    problems: list[Problem]
    images: int = 0
    captions: int = 0
    holding: dict[str, int] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        return any(problem.severity == "error" for problem in self.problems)


def check_recipe(path_or_name: str | Path, overrides: Sequence[str] = (), *, tokens: bool = False) -> Checked:
    """Everything that is wrong with a recipe: its form, and what it asks for as far as its form is right.

    With `tokens` also embeddings that no encoder would see, which a run finds by itself (and `--force` lets pass).
    """
    return _checked(*open_recipe(path_or_name, overrides), tokens=tokens)


def check_document(document: Document, overrides: Sequence[str] = ()) -> Checked:
    """As `check_recipe`, for a recipe out of a manifest."""
    return _checked(*open_document(document, overrides), tokens=False)


def _checked(recipe: Recipe | None, document: Document | None, problems: list[Problem], *, tokens: bool) -> Checked:
    if document is None:
        return Checked(None, problems)
    if recipe is None:
        return Checked(None, _in_order([*problems, *beyond_form(document)]))
    return examined(recipe, document, tokens=tokens)


def examined(recipe: Recipe, document: Document, dropped: Dropped = NOTHING, *, tokens: bool = False) -> Checked:
    """What a recipe of the right form asks for, looked at on this machine, except what depends on dropped parts."""
    captioned: list[Captioned] = []
    findings = list(_findings(recipe, document, captioned, dropped))
    if tokens and not any(one.severity == "error" for one in findings):
        findings += _few(unseen_findings(recipe, captioned))
    problems = [document.problem(finding.path, finding.text, finding.severity) for finding in findings]
    captions = [text for concept in captioned for _, texts in concept.images for text in texts]
    return Checked(
        recipe,
        _in_order(problems),
        sum(len(concept.images) for concept in captioned),
        len(captions),
        coverage(recipe.embeddings, captions),
    )


def beyond_form(document: Document) -> list[Problem]:
    """What the parts of a recipe ask for whose form is right."""
    form = form_of(document.data, MOST)
    if len(form.problems) > MOST:
        return []
    data, dropped, moved = without_refused(form)
    whole, lacking = with_many_embeddings(replace(document, data=data, original_paths=moved), MOST)
    if lacking:
        dropped = Dropped(dropped.places | {("embeddings_from",)})
    return [*lacking, *examined(build(whole.data, whole.path), whole, dropped).problems]


def _in_order(problems: list[Problem]) -> list[Problem]:
    """By their lines, and how many more there are at the end."""
    return sorted(dict.fromkeys(problems), key=lambda one: (not (one.line or one.place or one.file), one.line))


def checked_recipe(path_or_name: str | Path, overrides: Sequence[str] = ()) -> tuple[Recipe, list[Problem]]:
    """A recipe without errors and its warnings; RecipeError lists every error and warning otherwise."""
    checked = check_recipe(path_or_name, overrides)
    if checked.recipe is None or checked.failed:
        raise RecipeError([problem.shown(path_or_name) for problem in checked.problems])
    return checked.recipe, checked.problems


def _findings(recipe: Recipe, document: Document, captioned: list[Captioned], dropped: Dropped) -> Iterator[Finding]:
    """All findings whose reason cannot be that something was dropped."""
    embeddings = not dropped.lacks("embedding") and not dropped.touches("embeddings_from")
    if not dropped.lacks("stage"):
        yield from no_embedding_findings(recipe) if embeddings else ()
        yield from order_findings(recipe)
    for finding in (
        *_single(recipe, captioned, dropped, embeddings),
        *_across(recipe, document, captioned, dropped, embeddings),
    ):
        if finding.path[:2] in document.origins or not _rests_on(document.original_path(finding.path), dropped):
            yield finding


def _rests_on(path: Place, dropped: Dropped) -> bool:
    """Whether something was dropped of the part that a finding is about, or of what that part is checked with."""
    part = path[: _PARTS.get(str(path[0]))]
    others = _RESTS_ON.get(str(part[2]), ()) if len(part) == 3 else ()
    return dropped.touches(*part) or any(dropped.touches(*part[:2], key) for key in others)


def _single(recipe: Recipe, captioned: list[Captioned], dropped: Dropped, embeddings: bool) -> Iterator[Finding]:
    """What concerns the model, the images and the stages, each for itself."""
    family = family_of(recipe.model)
    if is_reserved(recipe.name):
        yield Finding(("name",), f"{recipe.name!r} is a device on Windows, so no folder can have this name; rename it")
    yield from model_findings(recipe.model)
    yield from layer_findings(recipe.model, family)
    cut = not dropped.touches("data") and not dropped.in_stages("resolution")
    for finding in image_findings(recipe, captioned, look=cut):
        if len(finding.path) > 1 or not dropped.touches("embeddings_from"):
            yield finding
    yield from _few(name_findings(recipe.embeddings))
    yield from _few(same_files(recipe))
    if not dropped.touches("model") and not dropped.touches("embedding"):
        yield from _few(base_findings(recipe, family))
    yield from shown_embedding_findings(recipe, captioned)
    yield from capital_findings(recipe, family)
    trained = embeddings and not dropped.touches("embedding")
    yield from stage_findings(recipe if trained else replace(recipe, embeddings=()), family)
    yield from rule_findings(recipe, family)
    yield from encoder_findings(recipe, family)


def _across(
    recipe: Recipe, document: Document, captioned: list[Captioned], dropped: Dropped, embeddings: bool
) -> Iterator[Finding]:
    """What several parts of the recipe have to do with each other."""
    if embeddings and not dropped.touches("concept") and not dropped.in_stages("embeddings"):
        yield from _few(caption_findings(recipe, captioned))
    if not any(dropped.touches(part) for part in ("concept", "embeddings_from", "data")):
        yield from batch_findings(recipe, captioned)
    exports = [
        document.original_path(("stage", at)) for at, stage in enumerate(recipe.stages) if stage.kind == "export"
    ]
    if not dropped.in_stages("lora") and not any(dropped.touches(*place) for place in exports):
        yield from _few(target_findings(recipe, family_of(recipe.model)))


def _few(findings: Iterator[Finding]) -> Iterator[Finding]:
    """The first few findings about embeddings of each severity, and how many more there are: nobody reads ten
    thousand.
    """
    said: Counter[str] = Counter()
    last: dict[str, Finding] = {}
    for finding in findings:
        if finding.path[0] != "embedding" or said[finding.severity] < MOST_EMBEDDINGS:
            yield finding
        if finding.path[0] == "embedding":
            said[finding.severity] += 1
            last[finding.severity] = finding
    for severity, count in said.items():
        if count > MOST_EMBEDDINGS:
            text = f"and {count - MOST_EMBEDDINGS:,} more like these; this is the last of them"
            yield Finding(last[severity].path, text, severity)
