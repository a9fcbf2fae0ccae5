"""Recipes over folders of images, and datasets of them with a tiny VAE."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from recipe_text import recipe_text, write_recipe

from pivotune.pipeline.data.dataset import Dataset, open_dataset
from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.recipe.model import Recipe


def recipe_of(folder: Path, *concepts: dict[str, Any], **data: Any) -> Recipe:
    """A recipe in `folder` with these concepts (with `images = "images"` by default) and this `[data]` table."""
    settings = "\n".join(f"data.{key} = {json.dumps(value)}" for key, value in data.items())
    tables = []
    for concept in concepts or ({},):
        tables += ["[[concept]]", *(f"{k} = {json.dumps(v)}" for k, v in ({"images": "images"} | concept).items())]
    text = recipe_text(top=settings, concepts="\n".join(tables), embeddings="")
    return load_recipe(write_recipe(folder / "recipe.toml", text))


def dataset_of(recipe: Recipe, vae: Any, size: int = 2, **options: Any) -> Dataset:
    """The dataset of a train stage of 16x16 images."""
    return open_dataset(recipe, vae, **{"resolution": 16, "batch_size": size, "seed": 3} | options)
