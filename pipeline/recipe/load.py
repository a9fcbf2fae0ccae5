"""Reads a recipe: every problem of its form at once, each with file, line, key, cause and way out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pivotune import schemas

from ..errors import RecipeError
from .defaults import with_defaults
from .document import Document, Unreadable, find, read, refuse_deep
from .embeddings_from import with_many_embeddings
from .form import form_of
from .intervals import parse_stop, stop_text
from .model import CheckpointRule, Concept, DataSpec, EmbeddingSpec, ModelSpec, Recipe, Samples, Stage, StopAfter
from .options import STAGE_OPTIONS, GenerateOptions, as_table, norm_rule, options_of, typed
from .overrides import override
from .problem import Problem

CHECKPOINTS = (".safetensors", ".ckpt")


def build(data: dict[str, Any], path: Path) -> Recipe:
    """A recipe from a document that fits `recipe.json`. ValueError where a text (stop_after) is more than a pattern."""
    folder = path.parent
    kinds = data["stage"]
    table = with_defaults({key: value for key, value in data.items() if key != "stage"}, schemas.schema("recipe.json"))
    embeddings = tuple(_embedding(item, folder) for item in table["embedding"])
    return Recipe(
        path=path,
        name=table["name"],
        seed=table["seed"],
        device=table["device"],
        model=_model(table["model"], folder),
        concepts=tuple(_concept(item, folder) for item in table["concept"]),
        embeddings=embeddings,
        stages=tuple(stage(item) for item in kinds),
        samples=_samples(table["samples"], embeddings),
        data=_data(table["data"], folder),
        checkpoint=CheckpointRule(parse_stop(table["checkpoint"]["every"]), table["checkpoint"]["keep"]),
        threads=table["threads"],
        description=table["description"],
    )


def stage(table: dict[str, Any]) -> Stage:
    """One stage with all its options; an option that is off is None."""
    kind = table["kind"]
    return Stage(kind, options_of(STAGE_OPTIONS[kind], **{key: value for key, value in table.items() if key != "kind"}))


def located(text: str, folder: Path) -> Path:
    """A path of a recipe, made absolute: relative ones start at the recipe's folder."""
    return Path(os.path.abspath(folder / Path(text).expanduser()))


def _model(table: dict[str, Any], folder: Path) -> ModelSpec:
    return ModelSpec(**{**table, "base": _source(table["base"], folder), "config": _source(table["config"], folder)})


def stated_model(base: str, family: str | None, config: str | None) -> ModelSpec:
    """A model as a command line names it; relative paths start at the working folder."""
    here = Path.cwd()
    return ModelSpec(str(_source(base, here)), family, "float32", None, None, _source(config, here))


def _embedding(table: dict[str, Any], folder: Path) -> EmbeddingSpec:
    base = None if table["base"] is None else located(table["base"], folder)
    stop, norm = parse_stop(table["stop_after"], own=True), norm_rule(table["preserve_norm"])
    return EmbeddingSpec(**{**table, "base": base, "stop_after": stop, "preserve_norm": norm})


def _source(text: str | None, folder: Path) -> str | None:
    """A model's place: an absolute path when it is a path, else the text (micro or a hub id)."""
    if text is None or text == "micro":
        return text
    path = located(text, folder)
    looks_so = text.startswith((".", "~", "/")) or text.lower().endswith(CHECKPOINTS)
    return str(path) if looks_so or path.exists() else text


def _concept(table: dict[str, Any], folder: Path) -> Concept:
    captions = table["captions"]
    if isinstance(captions, list):
        captions = tuple(captions)
    elif captions not in ("beside", "file-name"):
        captions = str(located(captions, folder))
    masks = table["masks"]
    if masks not in ("beside", "alpha", "none"):
        masks = str(located(masks, folder))
    generate = None if table["generate"] is None else typed(GenerateOptions, table["generate"])
    images = located(table["images"], folder)
    return Concept(**{**table, "images": images, "captions": captions, "masks": masks, "generate": generate})


def _data(table: dict[str, Any], folder: Path) -> DataSpec:
    cache = table["cache_latents"]
    place = cache if cache in ("user", "run", "memory", "off") else str(located(cache, folder))
    return DataSpec(**{**table, "cache_latents": place})


SHOWN = (
    8  # so many embeddings are drawn where the recipe names no prompts: a thousand would take longer than the training
)


def _samples(table: dict[str, Any], embeddings: tuple[EmbeddingSpec, ...]) -> Samples:
    prompts = table["prompts"]
    if prompts is None:
        prompts = [f"a photo of {embedding.placeholder}" for embedding in embeddings[:SHOWN]]
    return Samples(**{**table, "prompts": tuple(prompts)})


def recipe_as_json(recipe: Recipe) -> dict[str, Any]:
    """The recipe with every effective setting, as a document that fits `recipe.json` again; paths are absolute."""
    top = {key: getattr(recipe, key) for key in ("name", "description", "seed", "device", "threads")}
    document = {
        **top,
        "model": vars(recipe.model),
        "concept": [{**vars(one), "generate": as_table(one.generate)} for one in recipe.concepts],
        "embedding": [{**vars(one), "preserve_norm": as_table(one.preserve_norm)} for one in recipe.embeddings],
        "stage": [{"kind": item.kind, **as_table(item.options)} for item in recipe.stages],
        "samples": vars(recipe.samples),
        "data": vars(recipe.data),
        "checkpoint": vars(recipe.checkpoint),
    }
    return _plain(document)


def recipe_from_json(document: dict[str, Any], path: Path) -> Recipe:
    """The recipe that `recipe_as_json` wrote down; `path` is the recipe file it came from."""
    return build(document, path)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, StopAfter):
        return stop_text(value)
    return str(value) if isinstance(value, Path) else value


__all__ = ["load_recipe", "open_recipe", "recipe_as_json", "recipe_from_json"]

MOST = 100  # problems that are shown


def load_recipe(path_or_name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a file, or the shipped one of that name; RecipeError lists all that is wrong with its form.

    What a schema cannot see (images, captions, names) is `check.py`'s. Overrides are written as `train.steps=10`.
    """
    recipe, _, problems = open_recipe(path_or_name, overrides)
    if recipe is None:
        raise RecipeError([problem.shown(str(path_or_name)) for problem in problems])
    return recipe


def open_recipe(
    path_or_name: str | Path, overrides: Sequence[str] = ()
) -> tuple[Recipe | None, Document | None, list[Problem]]:
    """The recipe, or None and its problems; the document (for line numbers) is None where the file cannot be parsed."""
    try:
        return open_document(read(find(path_or_name)), overrides)
    except Unreadable as error:
        return None, None, [error.problem]


def open_document(
    document: Document, overrides: Sequence[str] = ()
) -> tuple[Recipe | None, Document | None, list[Problem]]:
    """As `open_recipe`, for a recipe that was parsed already: from a file, or out of a manifest."""
    try:
        read_so, refused = override(document, overrides, list(schemas.schema("recipe.json")["properties"]))
        refuse_deep(read_so.data)
    except Unreadable as error:
        return None, None, [error.problem]
    recipe, whole, problems = validated(read_so)
    return (None if refused else recipe), whole, [*refused, *problems]


def validated(document: Document) -> tuple[Recipe | None, Document, list[Problem]]:
    """The recipe that a document is, and the document with the embeddings of its tables; or what keeps it from being
    one.
    """
    problems = form_problems(document)
    if problems:
        return None, document, problems
    whole, problems = with_many_embeddings(document, MOST)
    return (None, document, problems) if problems else (build(whole.data, whole.path), whole, [])


def form_problems(document: Document) -> list[Problem]:
    """What keeps the document from being a recipe, in the order of its lines."""
    found = form_of(document.data, MOST).problems
    problems = sorted((document.problem(*pair) for pair in found[:MOST]), key=lambda problem: problem.line)
    more = [Problem("error", 0, "", f"and more; mend these {MOST} first")] if len(found) > MOST else []
    return problems + more
