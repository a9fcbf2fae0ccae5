"""Class pictures for prior preservation (Ruiz et al. 2023), drawn by the model before anything of it is changed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..data.files import files_in
from ..errors import StageError
from ..models.load import Model
from ..recipe.model import Concept, Recipe
from ..train.draws import generator
from .samples import BATCH_PIXELS


def draw_class_pictures(model: Model, recipe: Recipe, progress: Callable[[str], None]) -> None:
    """Fill the folders of concepts with `generate`: what they hold counts, what is missing is drawn.

    Picture `n` depends on the recipe's seed and `n` alone. Raises StageError when the folder cannot be written.
    """
    for number, concept in enumerate(recipe.concepts):
        if concept.generate is None:
            continue
        try:
            concept.images.mkdir(parents=True, exist_ok=True)
            missing = concept.generate["count"] - len(files_in(concept.images, recursive=concept.recursive).pictures)
            if missing > 0:
                progress(f"drawing {missing} class pictures into {concept.images}")
                _draw(model, concept, _free(concept.images, missing), (recipe.seed, "class", number))
        except OSError as error:
            raise StageError(f"class pictures: {concept.images} cannot be written: {error}") from error


def _free(folder: Path, count: int) -> list[int]:
    """The first numbers for which there is no class picture yet."""
    taken = {path.stem for path in folder.glob("class-*.png")}
    return [n for n in range(count + len(taken)) if f"class-{n:05d}" not in taken][:count]


def _draw(model: Model, concept: Concept, numbers: Sequence[int], seed: tuple[Any, ...]) -> None:
    asked: Any = concept.generate
    side = model.denoiser.config.sample_size * model.pipe.vae_scale_factor
    at_once = max(1, BATCH_PIXELS // (side * side))
    for start in range(0, len(numbers), at_once):
        part = numbers[start : start + at_once]
        prompts = [asked["prompts"][n % len(asked["prompts"])] for n in part]
        pictures = model.pipe(
            prompts, num_inference_steps=asked["steps"], guidance_scale=asked["guidance"],
            generator=[generator(seed[0], *seed[1:], n) for n in part],
        ).images  # fmt: skip
        for n, prompt, picture in zip(part, prompts, pictures, strict=True):
            _keep(concept.images / f"class-{n:05d}.png", picture, prompt)


def _keep(path: Path, picture: Image.Image, prompt: str) -> None:
    """The caption first, then the picture under its name: a picture that is there has its caption."""
    path.with_suffix(".txt").write_text(prompt + "\n", "utf-8", newline="\n")
    part = path.with_name(f".{path.name}.part")
    picture.save(part, format="PNG")
    os.replace(part, path)
