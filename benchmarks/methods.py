"""Compares training methods on the micro model: how well they draw a subject, how much other prompts change.

    python benchmarks/methods.py [--seeds 3] [--steps 150] [--subject NAME]… [--method NAME]…

Every method takes the same number of steps of the same batch size on the same images; where it has two stages they
share the steps, but for the rows that say otherwise. Learning rates and LoRA are the same in all methods that have
them. Images are drawn with what was exported, by a freshly loaded model, always from the same seeds. Writes
methods.json row by row (a row that is there is not measured again) and METHODS.md beside this file.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import mean, median
from typing import Any

import click
import numpy as np
import torch
from methods_recipes import METHODS, recipe_of
from methods_table import loss_markdown, markdown
from PIL import Image

from pivotune.pipeline.models.load import load_model
from pivotune.pipeline.recipe.model import Recipe
from pivotune.pipeline.run.runner import run_recipe
from pivotune.pipeline.run.samples import draw_after, draw_now
from pivotune.pipeline.stages import STAGES
from pivotune.recipes.micro.grammar import BACKGROUNDS, COLOURS, Scene, Thing
from pivotune.recipes.micro.images import THINGS
from pivotune.recipes.micro.judge import HIT, distance_to_drawing

HERE = Path(__file__).parent
CPU = torch.device("cpu")
# Prompts without the embedding, and what they should show: two far from every subject, and one similar to the
# two-tone square.
OTHERS = {
    "a photo of a red circle on a white background": Thing("circle", COLOURS["red"]),
    "an image of a green star on a gray background": Thing("star", COLOURS["green"]),
    "a photo of a purple square on a white background": Thing("square", COLOURS["purple"]),
}


def trained(recipe: Recipe, folder: Path) -> dict[tuple[str, int], Any]:
    """Run the recipe; images (64, 64, 3) by prompt and seed, as a fresh model draws them with the exported files."""
    silent = replace(recipe, samples=replace(recipe.samples, prompts=()))
    run_recipe(silent, STAGES, out=folder / "run", progress=lambda text: None, bar=False)
    exports = folder / "run" / "exports"
    [embedding] = (exports / "methods_embeddings").glob("*.safetensors")
    tuned, lora = exports / "methods_model", exports / "methods.safetensors"
    spec = replace(recipe.model, base=str(tuned), family="sd1") if tuned.is_dir() else recipe.model
    files = {recipe.embeddings[0].placeholder: embedding}
    rows = draw_after(load_model(spec, CPU), recipe, files, lora if lora.is_file() else None, folder / "images")
    return {(row["prompt"], row["seed"]): opened(folder / row["path"]) for row in rows}


def opened(path: Path) -> Any:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@cache
def base_images(count: int) -> dict[tuple[str, int], Any]:
    """Images of the other prompts by the base model."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = recipe_of(folder, "moon", "embeddings", 0, 1, list(OTHERS), count)
        plain = replace(recipe, samples=replace(recipe.samples, prompts=tuple(OTHERS)))
        rows = draw_now(load_model(recipe.model, CPU), plain, folder / "images", "base")
        return {(row["prompt"], row["seed"]): opened(folder / row["path"]) for row in rows}


def measured(shown: dict[tuple[str, int], Any], subject: str, count: int) -> dict[str, float]:
    """Distance of the embedding's images to the subject, and drift and distance of those of other prompts."""
    near = [distance_to_drawing(one, scene_of(THINGS[subject])) for (prompt, _), one in shown.items()
            if prompt not in OTHERS]  # fmt: skip
    others = {asked: one for asked, one in shown.items() if asked[0] in OTHERS}
    before = base_images(count)
    drift = [float(np.abs(one.astype(int) - before[asked]).mean()) for asked, one in others.items()]
    far = [distance_to_drawing(one, scene_of(OTHERS[asked[0]])) for asked, one in others.items()]
    found = {"distance": median(near), "recognisable": mean(d < HIT for d in near), "drift": median(drift),
             "other_distance": mean(far)}  # fmt: skip
    return {name: round(float(value), 3) for name, value in found.items()}


def scene_of(subject: Thing) -> Scene:
    """The judge looks for place, size and background in the image."""
    return Scene(subject, BACKGROUNDS["yellow"])


def measure(subject: str, method: str, seed: int, steps: int, count: int, keep: Path | None = None) -> dict[str, Any]:
    """One row: train, draw, judge. `keep` is where the images of the embedding go."""
    with tempfile.TemporaryDirectory() as name:
        recipe = recipe_of(Path(name), subject, method, seed, steps, list(OTHERS), count)
        shown = trained(recipe, Path(name))
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        sheet = [np.concatenate([one for (prompt, _), one in shown.items() if prompt == asked], axis=1)
                 for asked in recipe.samples.prompts]  # fmt: skip
        Image.fromarray(np.concatenate(sheet)).save(keep / f"{subject}-{method}-{seed}.png".replace(" ", "_"))
    return {"method": method, "subject": subject, "seed": seed, "steps": steps, "count": count,
            **measured(shown, subject, count)}  # fmt: skip


@click.command()
@click.option("--seeds", default=3, show_default=True)
@click.option("--steps", default=150, show_default=True)
@click.option("--count", default=6, show_default=True, help="Images for each prompt.")
@click.option("--subject", "subjects", multiple=True, type=click.Choice(list(THINGS)), default=("two-tone", "moon"))
@click.option("--method", "methods", multiple=True, type=click.Choice(list(METHODS)), default=tuple(METHODS))
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=HERE, help="Where the results go.")
@click.option("--keep", type=click.Path(path_type=Path, file_okay=False), help="Where a sheet of images a row goes.")
def main(
    seeds: int,
    steps: int,
    count: int,
    subjects: tuple[str, ...],
    methods: tuple[str, ...],
    out: Path,
    keep: Path | None,
) -> None:
    """Train every method and write what was measured."""
    path = out / "methods.json"
    found: list[dict[str, Any]] = json.loads(path.read_text("utf-8")) if path.is_file() else []
    asked = {"steps": steps, "count": count}
    found = [row for row in found if asked.items() <= row.items()]  # rows of other settings compare with nothing here
    for seed in range(seeds):
        for subject in subjects:
            for method in methods:
                this = {"method": method, "subject": subject, "seed": seed}
                if any(this.items() <= row.items() for row in found):
                    continue
                found.append(measure(subject, method, seed, steps, count, keep))
                path.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
                click.echo(found[-1])
    losses: list[dict[str, Any]] = json.loads((HERE / "loss.json").read_text("utf-8"))
    ways = sorted({row["way"] for row in losses}, key=lambda way: (not way.startswith("plain"), way))
    (out / "METHODS.md").write_text(markdown(found, METHODS) + loss_markdown(losses, ways), "utf-8")


if __name__ == "__main__":
    main()
