"""The recipes that `methods.py` compares: each method as train stages, everything else the same."""

from __future__ import annotations

import json
from pathlib import Path

from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.recipe.model import Recipe
from pivotune.recipes.micro.images import placeholder

IMAGES = Path(__file__).parents[1] / "recipes" / "images"
LORA = 'lora = { rank = 8, learning_rate = 2e-3, targets = "all" }'
TUNE = "finetune = { learning_rate = 3e-4 }"
LOCALITY = "locality = { weight = 1.0 }"
# method: its train stages as (share of the steps, what the stage says beside them)
METHODS: dict[str, list[tuple[float, str]]] = {
    "embeddings": [(1.0, "")],
    "embeddings + LoRA": [(1.0, LORA)],
    "embeddings + fine-tune": [(1.0, TUNE)],
    "embeddings, then LoRA": [(0.5, ""), (0.5, f"embeddings = false\n{LORA}")],
    "embeddings, then fine-tune": [(0.5, ""), (0.5, f"embeddings = false\n{TUNE}")],
    "embeddings + LoRA, locality": [(1.0, f"{LORA}\n{LOCALITY}")],
    "embeddings + fine-tune, locality": [(1.0, f"{TUNE}\n{LOCALITY}")],
    "embeddings, then LoRA, twice the steps": [(1.0, ""), (1.0, f"embeddings = false\n{LORA}")],
    "embeddings, then fine-tune, twice the steps": [(1.0, ""), (1.0, f"embeddings = false\n{TUNE}")],
}
START = {"emblem": "ring", "salmon-heart": "heart", "two-tone": "square", "logo": "square", "moon": "circle"}
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
placeholder = "{embedding}"
initial_text = "{start}"
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
learning_rate = 1.5e-2
warmup_steps = 10
schedule = "sqrt"
log_every = 50
{more}
"""


def recipe_of(folder: Path, subject: str, method: str, seed: int, steps: int, prompts: list[str], count: int) -> Recipe:
    """The recipe of one method, subject and seed, written into the folder; the embedding's own prompt comes before
    others.
    """
    images, embedding, stages = IMAGES / subject, placeholder(subject), METHODS[method]
    text = RECIPE.format(
        seed=seed,
        images=json.dumps(str(images)),
        embedding=embedding,
        start=START[subject],
        stages="".join(STAGE.format(steps=round(share * steps), more=more) for share, more in stages),
        prompts=json.dumps([f"a photo of {embedding} on a yellow background", *prompts]),
        count=count,
    )
    path = folder / "recipe.toml"
    path.write_text(text, "utf-8")
    return load_recipe(path)
