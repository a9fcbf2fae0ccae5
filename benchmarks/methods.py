"""What the methods learn on the micro model: how near they come to a thing, and how intact other prompts stay.

    python benchmarks/methods.py OUT.json [--seeds 3] [--steps 300] [--things two-tone,moon]

Each method trains for the same number of steps on the same pictures. `near` is the distance of its pictures to the
thing as it is drawn (0 to 255, below 25 a viewer sees the same), `hits` the share of pictures below 25, `drift` the
mean absolute difference (0 to 255) of pictures of other prompts from those of the untouched model at the same seed.
Rows are written as they come, so that a stopped benchmark keeps what it has.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, median
from typing import Any

import click
import numpy as np
from PIL import Image

from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.recipe.model import Recipe
from pivotune.pipeline.run.runner import run_recipe
from pivotune.recipes.micro.grammar import BACKGROUNDS, Scene
from pivotune.recipes.micro.judge import HIT, distance_to_drawing
from pivotune.recipes.micro.pictures import THINGS, placeholder

LORA = 'lora = { rank = 8, learning_rate = 1e-3, targets = "attention+feed-forward" }'
TUNE = "finetune = { learning_rate = 1e-4 }"
# method: its train stages as (share of the steps, what the stage says beside them)
METHODS: dict[str, list[tuple[float, str]]] = {
    "words": [(1.0, "")],
    "words + LoRA": [(1.0, LORA)],
    "words + fine-tune": [(1.0, TUNE)],
    "words, then LoRA": [(0.5, ""), (0.5, f"embeddings = false\n{LORA}")],
    "words, then fine-tune": [(0.5, ""), (0.5, f"embeddings = false\n{TUNE}")],
}
OTHERS = ("a photo of a red circle on a white background", "a picture of a green star on a gray background")
RECIPE = """
name = "methods"
seed = {seed}
device = "cpu"
threads = 1
[model]
base = "micro"
[[concept]]
images = {images}
[[embedding]]
placeholder = "{word}"
initial_text = "square"
tokens = 2
[[stage]]
kind = "tokenize"
[[stage]]
kind = "inject"
{stages}
[[stage]]
kind = "export"
targets = ["diffusers"]
[samples]
prompts = {prompts}
count = {count}
guidance = 3.0
"""
STAGE = """
[[stage]]
kind = "train"
steps = {steps}
batch_size = 4
learning_rate = 1e-2
schedule = "sqrt"
log_every = 50
{more}
"""


def recipe_of(folder: Path, thing: str, method: str, seed: int, steps: int, count: int) -> Recipe:
    """The recipe of one method, thing and seed, written into the folder."""
    images = Path(__file__).parents[1] / "recipes" / "pictures" / thing
    word = placeholder(thing)
    stages = "".join(STAGE.format(steps=round(share * steps), more=more) for share, more in METHODS[method])
    prompts = json.dumps([f"a photo of {word} on a yellow background", *OTHERS])
    path = folder / "recipe.toml"
    filled = RECIPE.format(
        seed=seed, images=json.dumps(str(images)), word=word, stages=stages, prompts=prompts, count=count
    )
    path.write_text(filled, "utf-8")
    return load_recipe(path)


def measured(folder: Path, thing: str) -> dict[str, Any]:
    """Nearness, hits and drift of a finished run."""
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    shown: dict[tuple[str, str, int], Any] = {}
    for row in manifest["pictures"]:
        picture = np.asarray(Image.open(folder / row["path"]).convert("RGB"))
        shown[row["when"], row["prompt"], row["seed"]] = picture
    scene = Scene(THINGS[thing], BACKGROUNDS["yellow"])
    near = [distance_to_drawing(one, scene) for (when, prompt, _), one in shown.items()
            if when == "after" and prompt not in OTHERS]  # fmt: skip
    drift = [float(np.abs(one.astype(int) - shown["before", prompt, seed]).mean())
             for (when, prompt, seed), one in shown.items() if when == "after" and prompt in OTHERS]  # fmt: skip
    return {"near": median(near), "hits": mean(one < HIT for one in near), "drift": median(drift)}


def rows(things: list[str], seeds: int, steps: int, count: int) -> Iterator[dict[str, Any]]:
    """One row a seed, thing and method; methods in turn, so that a benchmark cut short compares like with like."""
    for seed in range(seeds):
        for thing in things:
            for method in METHODS:
                with tempfile.TemporaryDirectory() as name:
                    folder = Path(name)
                    recipe = recipe_of(folder, thing, method, seed, steps, count)
                    run_recipe(recipe, out=folder / "run", progress=lambda text: None, bar=False)
                    found = measured(folder / "run", thing)
                yield {"method": method, "thing": thing, "seed": seed, "steps": steps, **found}


@click.command()
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--seeds", default=3, show_default=True)
@click.option("--steps", default=300, show_default=True)
@click.option("--count", default=8, show_default=True, help="Pictures for each prompt.")
@click.option("--things", default="two-tone,moon", show_default=True)
def main(out: Path, seeds: int, steps: int, count: int, things: str) -> None:
    """Train every method and write what was measured."""
    found: list[dict[str, Any]] = []
    for row in rows(things.split(","), seeds, steps, count):
        found.append(row)
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(*(f"{key}={value if not isinstance(value, float) else round(value, 2)}" for key, value in row.items()))


if __name__ == "__main__":
    main()
