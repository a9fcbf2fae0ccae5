"""A small project on disk: a tiny model folder, a few images with captions, and a recipe."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from recipe_text import noise, recipe_text, write_recipe
from tiny import (
    tiny_cascade,
    tiny_chroma,
    tiny_flux,
    tiny_pixart,
    tiny_sd,
    tiny_sd2,
    tiny_sd3,
    tiny_sdxl,
    tiny_z_image,
)
from tiny_llm import (
    tiny_anima,
    tiny_flux2,
    tiny_hidream,
    tiny_hunyuan_video,
    tiny_klein,
    tiny_krea2,
    tiny_lumina2,
    tiny_qwen_image,
    tiny_sana,
    tiny_wan,
)

from pivotune.converters.families import families
from pivotune.pipeline.effnet import torchvision_problem
from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.recipe.model import Recipe
from pivotune.pipeline.run import runner
from pivotune.pipeline.run.context import RunState
from pivotune.pipeline.run.signals import Stopped
from pivotune.pipeline.stages import STAGES
from pivotune.pipeline.train import loop

BUILD = {
    "sd1": tiny_sd, "sd2": tiny_sd2, "sdxl": tiny_sdxl, "sd3": tiny_sd3, "sd3-without-t5": partial(tiny_sd3, t5=False),
    "flux": tiny_flux, "flux-schnell": partial(tiny_flux, guided=False),
    "chroma": tiny_chroma, "pixart": tiny_pixart, "z-image": tiny_z_image, "flux2-klein-4b": tiny_klein,
    "flux2-dev": tiny_flux2, "sana": tiny_sana, "lumina2": tiny_lumina2, "qwen-image": tiny_qwen_image,
    "krea2": tiny_krea2, "hidream": tiny_hidream, "hunyuan-video": tiny_hunyuan_video, "wan": tiny_wan,
    "wan-2.2": partial(tiny_wan, two=True), "anima": tiny_anima, "cascade": tiny_cascade,
}  # fmt: skip


SIDES = {"sana": 32, "cascade": 128}  # images in pixels that the tiny model takes; 16 for all others
NO_TORCHVISION = torchvision_problem()


def runnable(names: Iterable[str]) -> list[Any]:
    """Names of models as parameters of a test that loads them; those that need torchvision are skipped without it."""
    skip = pytest.mark.skipif(NO_TORCHVISION is not None, reason=str(NO_TORCHVISION))
    return [pytest.param(one, marks=skip) if families()[family_name(one)].image_encoder else one for one in names]


def family_name(model: str) -> str:
    """The family of a model in BUILD: `sd3-without-t5` is of sd3, `z-image` of itself."""
    return model if model in families() else model.partition("-")[0]


def image_side(family: str) -> int:
    """Side in pixels of an image that a tiny model takes: its pipelines or its VAE need a multiple."""
    return 32 if family in ("wan", "wan-2.2") else SIDES.get(family, 16)


def make_project(folder: Path, family: str = "sd1", captions: str = "a photo of <cat>", **parts: str) -> Path:
    """Write the project and return its recipe; `parts` are lines of its tables (model, embedding, more,
    train, stages, export).
    """
    BUILD[family]().save_pretrained(folder / "model")
    for number in range(3):
        noise(folder / "images" / f"{number}.png", seed=number)
        (folder / "images" / f"{number}.txt").write_text(captions, "utf-8")
    part = dict.fromkeys(("model", "embedding", "more", "train", "stages", "export"), "") | parts
    text = recipe_text(
        top='seed = 3\ndevice = "cpu"\nthreads = 1',
        model=f'base = "model"\nfamily = "{family_name(family)}"\n{part["model"]}',
        embeddings=f'[[embedding]]\nplaceholder = "<cat>"\ninitial_text = "red ring"\n{part["embedding"]}',
        train=f"steps = 3\nbatch_size = 2\nlearning_rate = 1e-2\n{part['train']}",
        samples=f'count = 1\nsteps = 2\nsize = {SIDES.get(family, 16)}\nbefore = "always"',
        **{key: part[key] for key in ("more", "stages", "export")},
    )
    return write_recipe(folder / "recipe.toml", text)


def run_recipe(recipe: Recipe, **options: Any) -> runner.RunResult:
    """Run a recipe with the stages of Pivotune; by default nothing is printed."""
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


def stopped_at(monkeypatch: pytest.MonkeyPatch, number: int, how: int) -> None:
    """Have step `number` (of all stages together) send this process a signal."""
    one_step, count = loop.one_step, []

    def asked(training: Any, clock: Any) -> Any:
        count.append(clock.step)
        if len(count) == number:
            os.kill(os.getpid(), how)
        return one_step(training, clock)

    monkeypatch.setattr(loop, "one_step", asked)


def interrupt(monkeypatch: pytest.MonkeyPatch, recipe: Path | Recipe, out: Path) -> None:
    """Run a recipe into a folder, with Ctrl-C in its second step: the same command resumes it."""
    stopped_at(monkeypatch, 2, signal.SIGINT)
    with pytest.raises(Stopped):
        run_project(recipe, out)
    monkeypatch.undo()
