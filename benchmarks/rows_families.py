"""What a train step costs beside its forward and backward pass alone, in every family.

The tiny models of the tests with twice their one or two layers, and models of the same widths that are deeper, with
larger images. A run alternates between its own step and the bare passes of the same batch: the pipeline's prompt
encoding, the denoiser, the loss, and back to the embedding's vectors.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from measure import HERE, Row, in_fresh_process, ratios

if TYPE_CHECKING:
    from pivotune.pipeline.recipe.model import Recipe

sys.path.append(str(HERE.parent / "tests"))

DEPTHS = ("num_layers", "num_single_layers", "n_layers", "layers_per_block", "transformer_layers_per_block")
GOAL = 1.05


@dataclass(frozen=True)
class Size:
    """`deeper`: factor for the denoiser's layers. `larger`: factor for the sides of the images."""

    deeper: int
    larger: int
    batch: int
    steps: int


SIZES = {"tiny": Size(2, 4, 8, 30), "mid-size": Size(4, 8, 2, 8)}
WARM_UP = 2


def rows() -> list[Row]:
    from projects import BUILD

    found = []
    for size in SIZES:
        for name in BUILD:
            measured: Any = in_fresh_process("rows_families.py", name, size)
            found.append(Row(f"step of {name}, {size}: CPU time", f"<= {GOAL} x bare passes", GOAL, measured))
    return found


def measure(name: str, size: Size) -> list[float]:
    """CPU time of each step over that of the bare passes of its batch."""
    from projects import run_project

    from pivotune.pipeline.train import loop

    ours: list[float] = []
    bare: list[float] = []
    one_step = loop.one_step

    def both(training: Any, clock: Any) -> Any:
        row = None
        for mine in (True, False) if clock.step % 2 else (False, True):
            call = partial(one_step, training, clock) if mine else bare_passes(training, clock.step)
            begin = time.process_time_ns()
            found = call()
            (ours if mine else bare).append((time.process_time_ns() - begin) / 1e9)
            row = found or row
        return row

    loop.one_step = both
    with tempfile.TemporaryDirectory() as folder:
        run_project(project(Path(folder), name, size), Path(folder) / "run")
    return ratios(ours[WARM_UP:], bare[WARM_UP:])


def bare_passes(training: Any, step: int) -> Callable[[], None]:
    """The forward and backward pass of a step's batch, as a call."""
    from pivotune.pipeline.train import loop

    batch, model = training.dataset.at(step), training.model
    noisy = loop._noisy_batch(training, batch, step).to(model.device, model.dtype)
    training.injection.activate(batch.captions, train=True)

    def passes() -> None:
        text = training.denoiser.encode(model.pipe, list(batch.captions))
        prediction = training.denoiser.predict(model.pipe, noisy.noisy, noisy.timesteps, text, batch.sizes)
        (prediction.float() - noisy.target).square().mean().backward()

    return passes


def project(folder: Path, name: str, size: Size) -> Recipe:
    """A recipe that trains an embedding in the tiny model of a family, with more layers and larger images."""
    from projects import BUILD, family_name, image_side
    from recipe_text import noise, recipe_text, write_recipe

    from pivotune.converters.families import families
    from pivotune.pipeline.recipe.load import load_recipe

    pipe, family, side = BUILD[name](), families()[family_name(name)], size.larger * image_side(name)
    deepen(pipe, family.denoiser_module, size.deeper)
    pipe.save_pretrained(folder / "model")
    for number in range(size.batch):
        noise(folder / "images" / f"{number}.png", side, side, seed=number)
        (folder / "images" / f"{number}.txt").write_text("a photo of <cat>", "utf-8")
    text = recipe_text(
        top='seed = 3\ndevice = "cpu"\nthreads = 1', model=f'base = "model"\nfamily = "{family.name}"',
        embeddings='[[embedding]]\nplaceholder = "<cat>"\ninitial_text = "red ring"',
        train=f"resolution = {side}\nbatch_size = {size.batch}\nsteps = {WARM_UP + size.steps}",
        samples="prompts = []", export="targets = []",
    )  # fmt: skip
    return load_recipe(write_recipe(folder / "recipe.toml", text))


def deepen(pipe: Any, module: str, times: int) -> None:
    """Give the denoiser so many times its layers, with random weights."""
    from colours import rebuild

    config = getattr(pipe, module).config
    torch.manual_seed(0)
    changes = {key: times * config[key] for key in DEPTHS if isinstance(config.get(key), int)}
    if "llama_layers" in config:  # HiDream: a hidden state of Llama for each layer
        changes["llama_layers"] = times * list(config["llama_layers"])
    if config.get("pos_embed_max_size"):  # SD3: the largest side in patches
        changes["pos_embed_max_size"] = 64
    rebuild(pipe, module, changes)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(measure(sys.argv[1], SIZES[sys.argv[2]])))
