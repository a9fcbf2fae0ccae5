"""What a schema cannot see: pictures, captions, names, the order of stages. Needs no torch and loads no model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..data.captions import Captioned
from ..errors import RecipeError
from .check_base import base_findings
from .check_captions import capital_findings, shown_word_findings
from .check_encoders import encoder_findings
from .check_model import family_of, layer_findings, model_findings
from .check_pictures import picture_findings
from .check_stages import stage_findings
from .check_targets import same_files, target_findings
from .check_words import caption_findings, coverage, name_findings
from .document import Document
from .load import open_recipe
from .model import Recipe
from .problem import Finding, Problem

MOST_WORDS = 10  # findings of one kind about words that are listed


@dataclass(frozen=True)
class Checked:
    """A recipe (None where its form is wrong), its problems, and how many captions hold each word."""

    recipe: Recipe | None
    problems: list[Problem]
    pictures: int = 0
    captions: int = 0
    holding: dict[str, int] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        return any(problem.severity == "error" for problem in self.problems)


def check_recipe(path_or_name: str | Path, overrides: Sequence[str] = ()) -> Checked:
    """Everything that is wrong with a recipe: its form, or when that is right, what it asks for."""
    recipe, document, problems = open_recipe(path_or_name, overrides)
    if recipe is None or document is None:
        return Checked(None, problems)
    return examined(recipe, document)


def examined(recipe: Recipe, document: Document) -> Checked:
    """What a recipe of the right form asks for, looked at on this machine."""
    captioned: list[Captioned] = []
    findings = list(_findings(recipe, captioned))
    problems = [document.problem(finding.path, finding.text, finding.severity) for finding in findings]
    captions = [text for concept in captioned for _, texts in concept.pictures for text in texts]
    return Checked(
        recipe,
        sorted(problems, key=lambda problem: problem.line),
        sum(len(concept.pictures) for concept in captioned),
        len(captions),
        coverage(recipe.words, captions),
    )


def checked_recipe(path_or_name: str | Path, overrides: Sequence[str] = ()) -> tuple[Recipe, list[Problem]]:
    """A recipe without errors and its warnings; RecipeError lists every error and warning otherwise."""
    checked = check_recipe(path_or_name, overrides)
    if checked.recipe is None or checked.failed:
        raise RecipeError([problem.shown(path_or_name) for problem in checked.problems])
    return checked.recipe, checked.problems


def _findings(recipe: Recipe, captioned: list[Captioned]) -> Iterator[Finding]:
    family = family_of(recipe.model)
    yield from model_findings(recipe.model)
    yield from layer_findings(recipe.model, family)
    yield from picture_findings(recipe, captioned)
    yield from _few(name_findings(recipe.words))
    yield from _few(same_files(recipe))
    yield from _few(base_findings(recipe, family))
    yield from _few(caption_findings(recipe, captioned))
    yield from shown_word_findings(recipe, captioned)
    yield from capital_findings(recipe, family)
    yield from stage_findings(recipe, family)
    yield from _few(target_findings(recipe, family))
    yield from encoder_findings(recipe, family)


def _few(findings: Iterator[Finding]) -> Iterator[Finding]:
    """The first few findings about words of each severity, and how many more there are: nobody reads ten thousand."""
    said: Counter[str] = Counter()
    last: dict[str, Finding] = {}
    for finding in findings:
        if finding.path[0] != "embedding" or said[finding.severity] < MOST_WORDS:
            yield finding
        if finding.path[0] == "embedding":
            said[finding.severity] += 1
            last[finding.severity] = finding
    for severity, count in said.items():
        if count > MOST_WORDS:
            text = f"and {count - MOST_WORDS:,} more like these; this is the last of them"
            yield Finding(last[severity].path, text, severity)
