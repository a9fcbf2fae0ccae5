"""A whole small project on disk: a tiny model folder, a few images with captions, and a recipe."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image
from tiny import tiny_chroma, tiny_flux, tiny_pixart, tiny_sd, tiny_sd2, tiny_sd3, tiny_sdxl

from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.recipe.model import Recipe
from pivotune.pipeline.run import runner
from pivotune.pipeline.run.context import RunState
from pivotune.pipeline.stages import STAGES

RECIPE = """
name = "tiny"
seed = 3
device = "cpu"
threads = 1
[model]
base = "model"
family = "{family}"
{model}
[[concept]]
images = "images"
[[embedding]]
placeholder = "<cat>"
initial_text = "red ring"
{embedding}
{more}
[[stage]]
kind = "tokenize"
[[stage]]
kind = "inject"
[[stage]]
kind = "train"
steps = 3
batch_size = 2
learning_rate = 1e-2
{train}
{stages}
[[stage]]
kind = "export"
{export}
[samples]
count = 1
steps = 2
size = 16
"""


BUILD = {
    "sd1": tiny_sd, "sd2": tiny_sd2, "sdxl": tiny_sdxl, "sd3": tiny_sd3, "sd3-without-t5": partial(tiny_sd3, t5=False),
    "flux": tiny_flux, "flux-schnell": partial(tiny_flux, guided=False),
    "chroma": tiny_chroma, "pixart": tiny_pixart,
}  # fmt: skip


def make_project(folder: Path, family: str = "sd1", captions: str = "a photo of <cat>", **parts: str) -> Path:
    """Write the project and return its recipe; `parts` fill its places (model, embedding, more, train, stages,
    export).
    """
    BUILD[family]().save_pretrained(folder / "model")
    (folder / "images").mkdir()
    draw = numpy.random.default_rng(0)
    for number in range(3):
        values = draw.integers(0, 255, (20, 16, 3), dtype=numpy.uint8)
        Image.fromarray(values).save(folder / "images" / f"{number}.png")
        (folder / "images" / f"{number}.txt").write_text(captions, "utf-8")
    filled = dict.fromkeys(("model", "embedding", "more", "train", "stages", "export"), "") | parts
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE.format(family=family.partition("-")[0], **filled), "utf-8")
    return recipe


def run_recipe(recipe: Recipe, **options: Any) -> runner.RunResult:
    """Run a recipe with the stages that Pivotune has; by default nothing is printed."""
    return runner.run_recipe(recipe, STAGES, **{"progress": lambda text: None, "bar": False, **options})


def run_project(recipe: Path | Recipe, out: Path, **options: Any) -> runner.RunResult:
    """Run a recipe, or the one of that file, into a folder."""
    return run_recipe(recipe if isinstance(recipe, Recipe) else load_recipe(recipe), out=out, **options)


def before_eject(monkeypatch: pytest.MonkeyPatch, look: Callable[[RunState, Any], None]) -> None:
    """Call `look` with the run's state and model whenever embeddings and LoRAs are about to be removed."""
    eject = RunState.eject

    def spy(state: RunState, model: Any) -> None:
        look(state, model)
        eject(state, model)

    monkeypatch.setattr(RunState, "eject", spy)
