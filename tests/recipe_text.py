"""The small recipe that tests start from, as TOML with parts to replace, and images of noise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
from PIL import Image

CONCEPT = '[[concept]]\nimages = "images"'
EMBEDDING = '[[embedding]]\nplaceholder = "<cat>"'


def recipe_text(
    name: str = "tiny", *, top: str = "", model: str = 'base = "micro"', concepts: str = CONCEPT,
    embeddings: str = EMBEDDING, more: str = "", train: str = "steps = 3", stages: str = "", export: str = "",
    samples: str = "",
) -> str:  # fmt: skip
    """A recipe with the stages tokenize, inject, train and export; `stages` come before the last one."""
    parts = (
        f"\nname = {json.dumps(name)}", top, "[model]", model, concepts, embeddings, more,
        '[[stage]]\nkind = "tokenize"', '[[stage]]\nkind = "inject"', '[[stage]]\nkind = "train"', train, stages,
        '[[stage]]\nkind = "export"', export, samples and f"[samples]\n{samples}",
    )  # fmt: skip
    return "\n".join(part for part in parts if part) + "\n"


def write_recipe(path: Path, text: str) -> Path:
    """Write the text of a recipe; returns its path."""
    path.write_text(text, "utf-8")
    return path


def noise(path: Path, width: int = 16, height: int = 20, seed: int = 0) -> Path:
    """Write an image of noise, and its folder; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = numpy.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=numpy.uint8)
    Image.fromarray(values).save(path)
    return path
