"""Recipes over folders of images, and datasets of them with a tiny VAE."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
from PIL import Image

from pivotune.pipeline.data.dataset import Dataset, open_dataset
from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.recipe.model import Recipe

RECIPE = """
name = "tiny"
model.base = "micro"
{tables}
[[stage]]
kind = "tokenize"
"""


def recipe_of(folder: Path, *concepts: dict[str, Any], **data: Any) -> Recipe:
    """A recipe in `folder` with these concepts (`images` is `images` if not said) and this `[data]` table."""
    tables = [f"data.{key} = {json.dumps(value)}" for key, value in data.items()]
    for concept in concepts or ({},):
        tables += ["[[concept]]", *(f"{k} = {json.dumps(v)}" for k, v in ({"images": "images"} | concept).items())]
    (folder / "recipe.toml").write_text(RECIPE.format(tables="\n".join(tables)), "utf-8")
    return load_recipe(folder / "recipe.toml")


def noise(path: Path, width: int = 16, height: int = 20, seed: int = 0) -> Path:
    """An image of noise; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = numpy.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=numpy.uint8)
    Image.fromarray(values).save(path)
    return path


def opened(recipe: Recipe, vae: Any, size: int = 2, **options: Any) -> Dataset:
    """The dataset of a train stage of 16x16 images."""
    return open_dataset(recipe, vae, **{"resolution": 16, "batch_size": size, "seed": 3} | options)
