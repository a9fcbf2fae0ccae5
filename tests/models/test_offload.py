"""Blocks that rest in host memory: the same results to the bit, and few of them on the device at any time."""

from __future__ import annotations

import weakref
from types import SimpleNamespace

import pytest
import torch
from projects import BUILD, family_name, make_project, run_project
from torch import nn

from pivotune.converters.families import families
from pivotune.pipeline.checks.memory import _away, memory_of
from pivotune.pipeline.checks.recipe import check_recipe
from pivotune.pipeline.models.load import skeleton
from pivotune.pipeline.models.offload import Offload, blocks_of, offloaded
from pivotune.pipeline.models.quantized import quantize
from pivotune.pipeline.recipe.load import load_recipe

CPU = torch.device("cpu")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, given, factor=1.0):
        return given + factor * self.norm(torch.tanh(self.linear(given)))


class Part(nn.Module):
    """Eight equal blocks after a layer that stays on the device."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(8, 8)
        self.blocks = nn.ModuleList(Block() for _ in range(8))

    def forward(self, given):
        given = self.first(given)
        for block in self.blocks:
            given = block(given, factor=0.5)
        return given


class Watched(Offload):
    """Counts copies, and how many blocks' copies are alive whenever one is made."""

    def __init__(self, *arguments):
        self.moves, self.most, self._alive = 0, 0, weakref.WeakSet()
        super().__init__(*arguments)

    def fetch(self, tensor):
        copy = super().fetch(tensor)
        self.moves += 1
        self._alive.add(copy)
        self.most = max(self.most, len(self._alive))
        return copy


def gradient_of(part):
    given = torch.linspace(-1, 1, 24).reshape(3, 8).requires_grad_(True)
    part(given).square().sum().backward()
    return given.grad


@pytest.mark.parametrize("kind", [None, "int8"])
@pytest.mark.parametrize(("share", "blocks"), [(1.0, 8), (0.5, 4), (0.25, 2)])
def test_gradients_are_the_same_and_two_blocks_at_most_are_on_the_device(share, blocks, kind):
    plain, part = Part().requires_grad_(False), Part().requires_grad_(False)
    if kind:
        quantize(plain, kind, torch.float32, CPU)
        quantize(part, kind, torch.float32, CPU)
    expected = gradient_of(plain)
    watched = Watched(part, share, CPU)
    tensors = 5 if kind else 4  # of a block: weights and biases, and the scale of packed ones
    for step in range(1, 4):
        assert torch.equal(gradient_of(part), expected)
        assert watched.moves == step * 2 * blocks * tensors  # once forward, once backward
    assert watched.most <= 2 * tensors
    with torch.no_grad():
        part(torch.zeros(1, 8))
    assert watched.moves == (3 * 2 + 1) * blocks * tensors


def test_a_lora_inside_a_block_keeps_its_own_weights():
    from peft import LoraConfig, inject_adapter_in_model

    parts = [Part().requires_grad_(False) for _ in range(2)]
    grads = []
    for number, part in enumerate(parts):
        if number:
            Offload(part, 1.0, CPU)
        torch.manual_seed(1)
        inject_adapter_in_model(LoraConfig(r=2, target_modules=["linear"], init_lora_weights=False), part)
        gradient_of(part)
        grads.append({name: one.grad for name, one in part.named_parameters() if one.requires_grad})
    assert len(grads[0]) == 16
    assert grads[0].keys() == grads[1].keys()
    assert all(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])


def test_offloaded_blocks_are_spread_evenly():
    assert offloaded(10, 1.0) == list(range(10))
    assert offloaded(10, 0.5) == [1, 3, 5, 7, 9]
    assert [len(offloaded(40, share)) for share in (0.1, 0.7, 0.85)] == [4, 28, 34]


@pytest.mark.parametrize("name", list(BUILD))
def test_every_denoiser_and_encoder_has_blocks(name):
    pipe, family = BUILD[name](), families()[family_name(name)]
    for module in (family.denoiser_module, *(one.module for one in family.encoders)):
        part = getattr(pipe, module, None)
        assert part is None or blocks_of(part)
        assert not any(isinstance(block, nn.ModuleList) for block in blocks_of(part or nn.Module()))


def test_blocks_of_a_unet_are_in_the_order_in_which_they_run():
    unet = BUILD["sdxl"]().unet
    assert blocks_of(unet) == [*unet.down_blocks, unet.mid_block, *unet.up_blocks]


SETTINGS = {
    "flux": ("offload = { denoiser = 1, t5 = 1, clip_l = 0.5, vae = 1 }", "lora = { rank = 2, learning_rate = 1e-2 }"),
    "sd1": ("offload = { denoiser = 0.7, clip_l = 1, vae = 1 }", "lora = { rank = 2, parts = ['denoiser', 'clip_l'] }"),
    "z-image": ('weights = { denoiser = "int8" }\noffload = { denoiser = 1 }', ""),
    "hidream": ("offload = { denoiser = 1, llama = 1 }", ""),
}


@pytest.mark.parametrize(
    "name", ["flux", *(pytest.param(one, marks=pytest.mark.slow) for one in SETTINGS if one != "flux")]
)
def test_a_run_with_offload_gives_the_same_bytes(tmp_path, name):
    model, train = SETTINGS[name]
    results = []
    for folder, keys in (("with", model), ("without", model.partition("offload")[0])):
        export = 'targets = ["comfyui"]'
        train_keys = f"resolution = 16\n{train}"
        recipe = make_project(tmp_path / folder, name, model=keys, train=train_keys, export=export)
        run_project(recipe, tmp_path / folder / "run")
        files = sorted((tmp_path / folder / "run" / "exports").rglob("*.safetensors"))
        images = sorted((tmp_path / folder / "run").rglob("*.png"))
        assert files
        assert images
        results.append([path.read_bytes() for path in (*files, *images)])
    assert results[0] == results[1]


def test_check_refuses_what_needs_all_weights_on_the_device(tmp_path):
    def texts(model, train):
        checked = check_recipe(make_project(tmp_path, model=model, train=f"resolution = 16\n{train}"))
        return [problem.text for problem in checked.problems if problem.severity == "error"]

    assert texts("offload = { denoiser = 0.5 }", "") == []
    assert "has no part 'denoisr'" in texts("offload = { denoisr = 0.5 }", "")[0]
    assert "compile needs all of the denoiser" in texts("offload = { denoiser = 0.5 }", "compile = true")[0]
    fine_tune = "finetune = { parts = ['denoiser'] }"
    assert "where they cannot be trained" in texts("offload = { denoiser = 0.5 }", fine_tune)[0]


def test_memory_of_a_device_is_without_offloaded_blocks(tmp_path, monkeypatch):
    from pivotune.pipeline.checks import memory

    recipe = load_recipe(make_project(tmp_path, model="offload = { denoiser = 1 }"))
    model = skeleton(recipe.model)
    away = _away(recipe.model, model, "unet", model.pipe.unet, 1000)
    assert 200 < away < 1000  # all blocks but two
    needs = SimpleNamespace(model_bytes=5000, offloaded=away, stages=())
    monkeypatch.setattr(memory, "device_memory", lambda device: (10**6, 10**6))
    assert memory_of(recipe, needs, torch.device("cuda"), 16).least == 5000 - away
    monkeypatch.setattr(memory, "_process", lambda: 0)
    assert memory_of(recipe, needs, CPU, 16).least == 5000
