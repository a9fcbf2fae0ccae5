"""Whether a recipe fits into the memory of a GPU: the model of memory, the settings, the table of the guide."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import huggingface_hub
import pytest
import torch
from projects import make_project
from torch import nn

from pivotune.converters.families import families
from pivotune.pipeline.checks.fit import GIB, USABLE, Fit, changed_keys, fit, largest, with_settings
from pivotune.pipeline.checks.gpu_memory import CUDA, Part, gpu_memory, sizes_of
from pivotune.pipeline.checks.model import offload_findings, weight_findings
from pivotune.pipeline.errors import StageError
from pivotune.pipeline.models.load import load_model, skeleton
from pivotune.pipeline.models.offload import blocks_of
from pivotune.pipeline.models.quantized import part_size
from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.recipe.model import Recipe
from pivotune.pipeline.recipe.options import TrainOptions

GUIDE = Path(__file__).resolve().parents[2] / "recipes" / "model-families.md"
# GB of GPU memory that an embedding with a LoRA of rank 16 has to fit into: one image of the family's resolution.
GOALS = {
    "sd1": 4, "sd2": 4, "sdxl": 6, "sd3": 8, "flux": 12, "chroma": 12, "flux2-klein-4b": 8, "flux2-klein-9b": 12,
    "flux2-dev": 24, "z-image": 8, "qwen-image": 16, "krea2": 12, "hidream": 16, "sana": 6, "lumina2": 6, "pixart": 6,
    "anima": 6, "hunyuan-video": 16, "wan": 16, "cascade": 12,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot(name: str, *, local_files_only: bool = False, **_: object) -> str:
        assert local_files_only, f"{name} is looked for on the network"
        raise OSError("not in the cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)


def usual(family: str) -> Recipe:
    """The shipped recipe of a family, with an embedding and a LoRA of rank 16, one image a step."""
    about = families()[family]
    model = [f"model.family={family}", f"model.base={about.example}"]
    return load_recipe(about.template, [*model, "train.batch_size=1", "train.lora={rank=16}"])


@cache
def at_goal(family: str) -> Fit:
    return fitted(usual(family), GOALS[family])


def fitted(recipe: Recipe, gib: float) -> Fit:
    found = fit(recipe, gib)
    assert found is not None
    return found


@pytest.mark.parametrize("family", GOALS)
def test_every_family_fits_as_the_guide_says(family: str) -> None:
    found = at_goal(family)
    assert found.fits
    changes = changed_keys(found.recipe, found.made)
    keys = ", ".join(f"`{path[-1]} = {value}`" for path, value in changes.items()) or "as it is"
    need = max(found.made_stages.values()) / GIB
    row = f"| {families()[family].title} | {GOALS[family]} GB | {need:.1f} GiB | {keys} |"
    assert row in GUIDE.read_text("utf-8").splitlines()


@pytest.mark.parametrize("family", ["sd1", "sdxl", "flux", "hidream", "flux2-dev"])
def test_settings_are_needed_and_allowed(family: str) -> None:
    found = at_goal(family)
    sizes = sizes_of(found.recipe)
    assert found.settings
    for setting in found.settings:
        fewer = with_settings(found.recipe, [one for one in found.settings if one is not setting])
        if fewer != found.made:  # a setting that a later one of its key replaces is not among them
            assert max(largest(fewer, sizes)[0].values()) > USABLE * found.limit
    about = families()[family]
    missing = [one for one in weight_findings(found.made, about) if "bitsandbytes" not in one.text]
    assert [*missing, *offload_findings(found.made, about)] == []


def test_what_cannot_fit_is_said_with_all_settings() -> None:
    found = fitted(usual("flux"), 2)
    assert not found.fits
    assert found.settings == tuple(setting for setting, _ in found.tried)
    assert found.made.model.offload == {"t5": 1, "denoiser": 1}


@pytest.mark.parametrize(("name", "key", "encoder", "refused"), [
    ("sdxl-finetune", "seed=1", "clip_g", ["weights.clip_g", "weights.denoiser", "offload.denoiser"]),
    ("flux-embedding-lora", "train.compile=true", "t5", ["offload.denoiser"]),
    ("flux-embedding-lora", "train.lora={rank=16, dora=true}", "t5", ["weights.denoiser"]),
])  # fmt: skip
def test_settings_that_the_checks_refuse_are_not_tried(name: str, key: str, encoder: str, refused: list[str]) -> None:
    tried = {f"{table}.{key}" for (table, key, _), _ in fitted(load_recipe(name, [key]), 2).tried}
    assert f"offload.{encoder}" in tried
    assert tried.isdisjoint(refused)


def test_a_smaller_batch_accumulates_as_many_images() -> None:
    recipe = load_recipe("sdxl-embeddings-lora", ["train.batch_size=4", "train.gradient_accumulation=3"])
    ((_, options),) = with_settings(recipe, [("train", "batch_size", 1)]).stages_with(TrainOptions)
    assert (options.batch_size, options.gradient_accumulation) == (1, 12)


def test_a_file_of_packed_weights_counts_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "flux-Q4.gguf"
    file.write_bytes(bytes(12345))
    recipe = load_recipe("flux-embedding-lora", [f"model.denoiser={file}"])
    found = fitted(recipe, 24)
    assert found.rows["denoiser"] == 12345
    assert "denoiser" not in found.made.model.weights


@pytest.mark.parametrize("key", ["gradient_checkpointing=false", "batch_size=2", "resolution=1536"])
def test_activations_follow_the_settings_of_the_stage(key: str) -> None:
    base = load_recipe("flux-embedding-lora")
    more = load_recipe("flux-embedding-lora", [f"train.{key}"])
    assert fitted(more, 80).rows["activations"] > 1.5 * fitted(base, 80).rows["activations"]


def test_frozen_encoders_have_no_backward_pass() -> None:
    frozen = load_recipe("flux-embedding-lora", ["embedding.learning_rate={clip_l=1e-3, t5=0}"])
    saved = fitted(load_recipe("flux-embedding-lora"), 80).rows["activations"] - fitted(frozen, 80).rows["activations"]
    assert saved == (24 + 25) * 512 * 4096 * 2


def test_the_weights_are_those_of_the_loaded_model(tmp_path: Path) -> None:
    recipe = load_recipe(make_project(tmp_path, "flux", model="dtype = 'bfloat16'\nweights = { denoiser = 'int8' }"))
    sizes = sizes_of(recipe)
    rows = gpu_memory(recipe, sizes, sizes.needs.stages[0])
    loaded = load_model(recipe.model, torch.device("cpu"))
    for row, module in (("denoiser", "transformer"), ("t5", "text_encoder_2"), ("vae", "vae")):
        part = getattr(loaded.pipe, module)
        tensors = [*part.parameters(), *(one for name, one in part.named_buffers() if name.endswith(".scale"))]
        assert rows[row] == pytest.approx(sum(one.nbytes for one in tensors), rel=0.01), row
    assert rows["CUDA"] == CUDA
    assert sum(rows.values()) == largest(recipe, sizes)[0][2]


def test_offloaded_blocks_are_away_but_for_two(tmp_path: Path) -> None:
    recipe = load_recipe(make_project(tmp_path, "flux"))
    sizes = sizes_of(recipe)
    part = nn.Module()
    part.table = nn.Linear(10, 1000)
    part.blocks = nn.ModuleList(nn.Sequential(nn.Linear(100, 100 + number)) for number in range(6))
    about = Part("t5", part_size(part), tuple(part_size(block) for block in blocks_of(part)))
    sizes = replace(sizes, parts=(about,))
    spec = replace(recipe.model, dtype="float32", offload={"t5": 1.0})
    rows = gpu_memory(replace(recipe, model=spec), sizes, sizes.needs.stages[0])
    assert rows["t5"] == 4 * (11 * 1000 + 101 * (104 + 105))
    packed = replace(spec, weights={"t5": "int8"})
    rows = gpu_memory(replace(recipe, model=packed), sizes, sizes.needs.stages[0])
    # a byte a weight, a scale a row, and the biases as they were
    assert rows["t5"] == 10 * 1000 + 8 * 1000 + sum(rows * 100 + 8 * rows for rows in (104, 105))


def test_a_model_at_hand_is_measured_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(make_project(tmp_path, "flux"))
    whole = sum(one.numel() for one in skeleton(recipe.model).denoiser.parameters())
    assert fitted(recipe, 8).model == recipe.model.base
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: recipe.model.base)
    cached = replace(recipe, model=replace(recipe.model, base="owner/name", family="flux"))
    assert fitted(cached, 8).rows["denoiser"] == 4 * whole


def test_an_unknown_family_is_an_error() -> None:
    recipe = load_recipe("sd15")
    with pytest.raises(StageError, match=r"set model\.family, one of"):
        fit(replace(recipe, model=replace(recipe.model, family=None)), 8)


@pytest.mark.parametrize("family", families())
def test_the_template_of_a_family_is_for_it(family: str) -> None:
    recipe = load_recipe(families()[family].template)
    assert recipe.model.family in (family, "flux2-klein-4b")
