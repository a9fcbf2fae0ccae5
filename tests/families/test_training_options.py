"""Every family with the options of training together, stopped and resumed; and a fine-tune after the embedding."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from projects import BUILD, family_name, image_side, make_project, run_project, run_recipe, runnable, stopped_at
from run.killing import made_files

from pivotune.converters.families import families
from pivotune.converters.safetensors_file import read
from pivotune.converters.tensor import is_token_ids
from pivotune.pipeline.models.load import load_model
from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.recipe.model import Recipe
from pivotune.pipeline.run.replay import replay
from pivotune.pipeline.run.signals import Stopped
from pivotune.pipeline.stages import STAGES

ALWAYS = ("chroma", "z-image")  # captions of one length and of several
NAMES = [name for name in BUILD if name not in ("sd1", "sd3-without-t5", "flux-schnell")]
FAMILIES = [
    one if name in ALWAYS else pytest.param(name, marks=[pytest.mark.slow, *getattr(one, "marks", ())])
    for name, one in zip(NAMES, runnable(NAMES), strict=True)
]
TRAIN = """
ema = 0.9
gradient_checkpointing = true
gradient_accumulation = 2
caption_dropout = 0.2
objective = { unmasked_weight = 0.2 }
lora = { rank = 2, learning_rate = 0.01, targets = "attention+feed-forward" }
"""


def project(folder: Path, family: str, **parts: str) -> Recipe:
    """A project with masks, images of two shapes, and all but the first text encoder left alone."""
    side = image_side(family)
    recipe = make_project(folder, family, **parts)
    for number, (width, height) in enumerate([(side, side), (2 * side, side), (side, 2 * side)]):
        Image.new("RGB", (width, height), (40 * number, 90, 200)).save(folder / "images" / f"{number}.png")
        mask = Image.new("L", (width, height), 255)
        mask.paste(0, (0, 0, width // 2, height))
        mask.save(folder / "images" / f"{number}-mask.png")
    return load_recipe(recipe)


@pytest.mark.parametrize("family", FAMILIES)
def test_options_together_resume_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    more = f"[data]\nbuckets = true\nbucket_step = {image_side(family)}\ncache_latents = 'memory'"
    recipe = project(
        tmp_path, family, train=f"resolution = {image_side(family)}{TRAIN}", more=more, export="targets = []"
    )
    whole = run_project(recipe, tmp_path / "whole").folder
    with monkeypatch.context() as patch:
        stopped_at(patch, 2, signal.SIGINT)
        with pytest.raises(Stopped):
            run_project(recipe, tmp_path / "run")
    run_recipe(recipe, out=tmp_path / "run")
    assert made_files(tmp_path / "run") == made_files(whole)
    again = replay(whole, STAGES, out=tmp_path / "again", progress=lambda text: None, bar=False)
    assert not again.differences


@pytest.mark.parametrize("family", FAMILIES)
def test_a_finetune_follows_the_embedding_and_leaves_other_encoders_alone(tmp_path: Path, family: str) -> None:
    stage = f"""
[[stage]]
kind = "train"
resolution = {image_side(family)}
steps = 1
embeddings = false
timesteps = {{ low = 900 }}
finetune = {{ parts = ["denoiser"], learning_rate = 0.001 }}
"""
    keys = [one.key for one in family_encoders(family)]
    rates = ", ".join(f"{key} = {0.0 if number else 0.01}" for number, key in enumerate(keys))
    recipe = project(
        tmp_path, family, train=f"resolution = {image_side(family)}", embedding=f"learning_rate = {{ {rates} }}",
        stages=stage, export='targets = []\nmodel = ["folder"]\nmodel_dtype = "float32"',
    )  # fmt: skip
    run_project(recipe, tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text("utf-8"))
    [embedding] = manifest["embeddings"]
    moved = {key: max(one["distance"]) > 0 for key, one in embedding["encoders"].items()}
    assert moved == {key: not number for number, key in enumerate(keys)}
    assert all(manifest["proofs"]["vocabulary_unchanged"].values())
    before, after = (weights(recipe, base) for base in (None, tmp_path / "run" / "exports" / "tiny_model"))
    changed = {
        name for name, part in before.items() if any(not torch.equal(part[key], after[name][key]) for key in part)
    }
    assert changed == {families()[family_name(family)].denoiser_module}
    tensors, _ = read(next((tmp_path / "run" / "exports" / "tiny_embeddings").glob("*.safetensors")))
    assert sum(not is_token_ids(raw) for raw in tensors.values()) == len(keys)


def family_encoders(family: str) -> Any:
    return families()[family_name(family)].encoders


def weights(recipe: Recipe, base: Path | None) -> dict[str, dict[str, torch.Tensor]]:
    """The weights of all models of the pipeline, of the recipe's base or of a folder."""
    from dataclasses import replace

    spec = recipe.model if base is None else replace(recipe.model, base=str(base), image_encoder=recipe.model.base)
    parts = load_model(spec, torch.device("cpu")).pipe.components
    return {name: part.state_dict() for name, part in parts.items() if isinstance(part, torch.nn.Module)}
