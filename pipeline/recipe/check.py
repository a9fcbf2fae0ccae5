"""What a schema cannot see: pictures, captions, names, the order of stages. Needs no torch and loads no model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...converters.names import is_reserved
from ..data.captions import Captioned
from ..errors import RecipeError
from ..models.stated import family_of
from .build import build
from .check_base import base_findings
from .check_captions import capital_findings, shown_word_findings
from .check_encoders import encoder_findings
from .check_model import layer_findings, model_findings
from .check_pictures import picture_findings
from .check_stages import stage_findings
from .check_targets import same_files, target_findings
from .check_tokens import unseen_findings
from .check_words import caption_findings, coverage, name_findings
from .document import Document
from .load import MOST, open_document, open_recipe
from .many_words import with_many_words
from .mend import mend
from .model import Recipe
from .once import Once
from .problem import Finding, Place, Problem

WORDS = ("concept", "embedding", "embeddings_from")
MOST_WAYS = 6  # in which a wrong recipe is mended
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


@dataclass(frozen=True)
class Doubt:
    """What of a recipe is not as its author meant it: places with a wrong value, words of tables that are `lacking`."""

    places: frozenset[Place] = frozenset()
    lacking: bool = False

    @property
    def listed(self) -> bool:
        """Whether all its words, pictures and captions are known."""
        return not self.lacking and all(path[0] not in WORDS for path in self.places)

    def of(self, path: Place) -> bool:
        """Whether something at this place would follow from that."""
        unlisted = path == ("concept",) and not self.listed
        return unlisted or any(path[:end] in self.places for end in range(1, len(path) + 1))


NONE = Doubt()


def check_recipe(path_or_name: str | Path, overrides: Sequence[str] = (), *, tokens: bool = False) -> Checked:
    """Everything that is wrong with a recipe: its form, and what it asks for as far as its form is right.

    With `tokens` also words that no encoder would see, which a run finds by itself (and `--anyway` lets pass).
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


def examined(
    recipe: Recipe, document: Document, doubt: Doubt = NONE, once: Once | None = None, *, tokens: bool = False
) -> Checked:
    """What a recipe of the right form asks for, looked at on this machine; `once` has what was read of it before."""
    captioned: list[Captioned] = []
    findings = [one for one in _findings(recipe, captioned, doubt, once or Once()) if not doubt.of(one.path)]
    if tokens and not any(one.severity == "error" for one in findings):
        findings += _few(unseen_findings(recipe, captioned))
    problems = [document.problem(finding.path, finding.text, finding.severity) for finding in findings]
    captions = [text for concept in captioned for _, texts in concept.pictures for text in texts]
    return Checked(
        recipe,
        _in_order(problems),
        sum(len(concept.pictures) for concept in captioned),
        len(captions),
        coverage(recipe.words, captions),
    )


def beyond_form(document: Document) -> list[Problem]:
    """What a recipe of a wrong form asks for, as far as that is wrong whatever was meant.

    What follows from a wrong value changes with the one that is put in its place. So the recipe is mended in two ways
    or more, in which all values that nobody knows differ, and what is found in each of them is said.
    """
    found: list[Problem] | None = None
    number, ways, once = 0, 2, Once()
    while number < min(ways, MOST_WAYS) and found != []:
        made = mend(document.data, number, MOST)
        if made.data is None:
            return []
        whole, lacking = with_many_words(replace(document, data=made.data, misspelt=made.misspelt), MOST)
        doubt = Doubt(frozenset(made.doubtful), bool(lacking))
        if not doubt.listed and not whole.data.get("embedding"):
            whole.data["embedding"] = [{"placeholder": "<unknown>"}]  # there would be words
        problems = dict.fromkeys([*lacking, *examined(build(whole.data, whole.path), whole, doubt, once).problems])
        found = [one for one in problems if found is None or one in found]
        number, ways = number + 1, made.ways if made.doubtful else 1
    return found or []


def _in_order(problems: list[Problem]) -> list[Problem]:
    """By their lines, and how many more there are at the end."""
    return sorted(dict.fromkeys(problems), key=lambda one: (not (one.line or one.place or one.file), one.line))


def checked_recipe(path_or_name: str | Path, overrides: Sequence[str] = ()) -> tuple[Recipe, list[Problem]]:
    """A recipe without errors and its warnings; RecipeError lists every error and warning otherwise."""
    checked = check_recipe(path_or_name, overrides)
    if checked.recipe is None or checked.failed:
        raise RecipeError([problem.shown(path_or_name) for problem in checked.problems])
    return checked.recipe, checked.problems


def _findings(recipe: Recipe, captioned: list[Captioned], doubt: Doubt, once: Once) -> Iterator[Finding]:
    family = family_of(recipe.model)
    if is_reserved(recipe.name):
        yield Finding(("name",), f"{recipe.name!r} is a device on Windows, so no folder can have this name; rename it")
    yield from model_findings(recipe.model)
    yield from layer_findings(recipe.model, family)
    yield from picture_findings(recipe, captioned, once)
    yield from _few(name_findings(recipe.words))
    yield from _few(same_files(recipe))
    yield from _few(base_findings(recipe, family))
    if doubt.listed:
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
