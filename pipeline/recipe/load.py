"""Loads a recipe: all violations of its schema at once, each with file, line, key, cause and fix."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pivotune import schemas

from ..errors import RecipeError
from .defaults import with_defaults
from .document import Document, Unreadable, find, read, refuse_deep
from .form import form_of
from .intervals import parse_interval
from .model import (
    CAPTION_SOURCES,
    MASK_SOURCES,
    PARTS,
    CheckpointRule,
    Concept,
    DataSpec,
    EmbeddingSpec,
    ModelSpec,
    Recipe,
    Samples,
    Stage,
    ValidationSpec,
)
from .options import STAGE_OPTIONS, GenerateOptions
from .problem import Problem
from .typed import as_table, norm_rule, options_of, typed

CHECKPOINTS = (".safetensors", ".ckpt")


def build(data: dict[str, Any], path: Path) -> Recipe:
    """The recipe of a document that fits `recipe.json`. ValueError for a value that a schema cannot check."""
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
        stages=tuple(stage(_with_bases(item, folder)) for item in kinds),
        samples=_samples(table["samples"], embeddings),
        data=_data(table["data"], folder),
        checkpoint=CheckpointRule(parse_interval(table["checkpoint"]["every"]), table["checkpoint"]["keep"]),
        validation=None if table["validation"] is None else _validation(table["validation"], folder),
        threads=table["threads"],
        description=table["description"],
    )


def stage(table: dict[str, Any]) -> Stage:
    """One stage with all its options; options that are off are None.

    Steps that are given in epochs are 0 with a note of the epochs: they are counted once the images are known.
    """
    kind, steps = table["kind"], table.get("steps")
    epochs = parse_interval(steps).value if isinstance(steps, str) else None
    given = {key: value for key, value in table.items() if key != "kind"} | ({} if epochs is None else {"steps": 0})
    return Stage(kind, options_of(STAGE_OPTIONS[kind], **given), epochs)


def _with_bases(table: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A stage whose LoRAs have absolute paths of their base files."""
    loras = table.get("lora")
    if loras is None:
        return table

    def absolute(one: dict[str, Any]) -> dict[str, Any]:
        return one if one.get("base") is None else {**one, "base": str(absolute_path(one["base"], folder))}

    return {**table, "lora": absolute(loras) if isinstance(loras, dict) else [absolute(one) for one in loras]}


def absolute_path(text: str, folder: Path) -> Path:
    """The absolute path of a path in a recipe; relative ones start at the recipe's folder."""
    return Path(os.path.abspath(folder / Path(text).expanduser()))


MODEL_PATHS = ("base", "config", "image_encoder", "decoder", "denoiser", *PARTS)


def _model(table: dict[str, Any], folder: Path) -> ModelSpec:
    paths = {key: _model_path(table[key], folder) for key in MODEL_PATHS}
    return ModelSpec(**{**table, **paths})


def model_spec(base: str, family: str | None, config: str | None) -> ModelSpec:
    """A model given on the command line; relative paths start at the working folder."""
    here = Path.cwd()
    return ModelSpec(str(_model_path(base, here)), family, "float32", None, None, _model_path(config, here))


def _embedding(table: dict[str, Any], folder: Path) -> EmbeddingSpec:
    base = None if table["base"] is None else absolute_path(table["base"], folder)
    stop, norm = parse_interval(table["stop_after"], own=True), norm_rule(table["preserve_norm"])
    return EmbeddingSpec(**{**table, "base": base, "stop_after": stop, "preserve_norm": norm})


def _model_path(text: str | None, folder: Path) -> str | None:
    """The absolute path of a model if it is a path, else the text (micro or a hub id)."""
    if text is None or text == "micro":
        return text
    path = absolute_path(text, folder)
    looks_like_path = text.startswith((".", "~", "/")) or text.lower().endswith(CHECKPOINTS)
    return str(path) if looks_like_path or path.exists() else text


def _concept(table: dict[str, Any], folder: Path) -> Concept:
    captions = table["captions"]
    if isinstance(captions, list):
        captions = tuple(captions)
    elif captions not in CAPTION_SOURCES:
        captions = str(absolute_path(captions, folder))
    masks = table["masks"]
    if masks not in MASK_SOURCES:
        masks = str(absolute_path(masks, folder))
    generate = None if table["generate"] is None else typed(GenerateOptions, table["generate"])
    images = absolute_path(table["images"], folder)
    return Concept(**{**table, "images": images, "captions": captions, "masks": masks, "generate": generate})


def _data(table: dict[str, Any], folder: Path) -> DataSpec:
    cache = table["cache_latents"]
    folder_or_mode = cache if cache in ("user", "run", "memory", "off") else str(absolute_path(cache, folder))
    return DataSpec(**{**table, "cache_latents": folder_or_mode})


def _validation(table: dict[str, Any], folder: Path) -> ValidationSpec:
    concept = None if table["concept"] is None else _concept(table["concept"], folder)
    return ValidationSpec(parse_interval(table["every"]), table["share"], concept, table["draws"])


DEFAULT_PROMPTS = 8  # embeddings with sample images if the recipe has no prompts


def _samples(table: dict[str, Any], embeddings: tuple[EmbeddingSpec, ...]) -> Samples:
    prompts = table["prompts"]
    before = table["before"] or ("auto" if prompts is None else "always")
    if prompts is None:
        prompts = [f"a photo of {embedding.placeholder}" for embedding in embeddings[:DEFAULT_PROMPTS]]
    seeds = None if table["seeds"] is None else tuple(table["seeds"])
    return Samples(**{**table, "prompts": tuple(prompts), "seeds": seeds, "before": before})


def recipe_as_json(recipe: Recipe) -> dict[str, Any]:
    """The recipe with all defaults as a document that fits `recipe.json`; paths are absolute."""
    top = {key: getattr(recipe, key) for key in ("name", "description", "seed", "device", "threads")}
    document = {
        **top,
        "model": vars(recipe.model),
        "concept": [as_table(concept) for concept in recipe.concepts],
        "embedding": [as_table(embedding) for embedding in recipe.embeddings],
        "stage": [{"kind": item.kind, **as_table(item.options)} for item in recipe.stages],
        "samples": vars(recipe.samples),
        "data": vars(recipe.data),
        "checkpoint": as_table(recipe.checkpoint),
        "validation": as_table(recipe.validation),
    }
    return _plain(document)


def recipe_from_json(document: dict[str, Any], path: Path) -> Recipe:
    """The recipe of `recipe_as_json`; `path` is the recipe file it came from."""
    return build(document, path)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


__all__ = ["load_recipe", "open_recipe", "recipe_as_json", "recipe_from_json"]

MAX_PROBLEMS = 100  # shown


def load_recipe(path_or_name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a file, or the shipped recipe of this name; RecipeError lists all violations of the schema.

    Images, captions and names are checked by `checks`. Overrides are written as `train.steps=10`.
    """
    recipe, _, problems = open_recipe(path_or_name, overrides)
    if recipe is None:
        raise RecipeError([problem.shown(str(path_or_name)) for problem in problems])
    return recipe


def open_recipe(
    path_or_name: str | Path, overrides: Sequence[str] = ()
) -> tuple[Recipe | None, Document | None, list[Problem]]:
    """The recipe, or None and its problems; the document (for line numbers) is None if the file cannot be parsed."""
    try:
        return open_document(read(find(path_or_name)), overrides)
    except Unreadable as error:
        return None, None, [error.problem]


def open_document(
    document: Document, overrides: Sequence[str] = ()
) -> tuple[Recipe | None, Document | None, list[Problem]]:
    """As `open_recipe`, for a parsed recipe, from a file or a manifest."""
    try:
        overridden, refused = _overridden(document, overrides)
        refuse_deep(overridden.data)
    except Unreadable as error:
        return None, None, [error.problem]
    recipe, document, problems = validated(overridden)
    return (None if refused else recipe), document, [*refused, *problems]


def _overridden(document: Document, overrides: Sequence[str]) -> tuple[Document, list[Problem]]:
    if not overrides:
        return document, []
    from .overrides import override

    return override(document, overrides, list(schemas.schema("recipe.json")["properties"]))


def with_embeddings_from(document: Document) -> tuple[Document, list[Problem]]:
    """The document with an [[embedding]] for each one of its [[embeddings_from]], and the problems of these."""
    if "embeddings_from" not in document.data:
        return document, []
    from .embeddings_from import with_many_embeddings

    return with_many_embeddings(document, MAX_PROBLEMS)


def validated(document: Document) -> tuple[Recipe | None, Document, list[Problem]]:
    """The recipe of a document, and the document with the embeddings of its [[embeddings_from]]; or its problems."""
    problems = form_problems(document)
    if problems:
        return None, document, problems
    whole, problems = with_embeddings_from(document)
    return (None, document, problems) if problems else (build(whole.data, whole.path), whole, [])


def form_problems(document: Document) -> list[Problem]:
    """Violations of the schema, sorted by line."""
    found = form_of(document.data, MAX_PROBLEMS).problems
    problems = sorted((document.problem(*pair) for pair in found[:MAX_PROBLEMS]), key=lambda problem: problem.line)
    more = [Problem("error", 0, "", f"and more; fix these {MAX_PROBLEMS} first")] if len(found) > MAX_PROBLEMS else []
    return problems + more
