"""LoRAs that are trained on from a file, and fixed ones under which embeddings are trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from projects import before_eject, interrupt, make_project, run_project
from random_lora import RandomLora, deltas_of, random_lora
from run.killing import made_files
from torch import Tensor

from pivotune.converters.lora import write_lora
from pivotune.converters.programs import programs
from pivotune.converters.tensor import RawTensor
from pivotune.pipeline.checks.recipe import check_recipe
from pivotune.pipeline.cli.plan import plan
from pivotune.pipeline.errors import StageError
from pivotune.pipeline.export.lora_base import merge_fixed_loras, read_bases
from pivotune.pipeline.export.lora_layouts import LAYOUTS
from pivotune.pipeline.models.load import Model, load_model, part_modules, pipe_name, prepare, skeleton
from pivotune.pipeline.recipe.load import load_recipe
from pivotune.pipeline.recipe.model import ModelSpec, Recipe
from pivotune.pipeline.recipe.options import LoraOptions, TrainOptions
from pivotune.pipeline.recipe.typed import options_of
from pivotune.pipeline.run import runner
from pivotune.pipeline.run.replay import replay
from pivotune.pipeline.stages import STAGES
from pivotune.pipeline.tensors import from_raw, to_raw
from pivotune.pipeline.train.lora import ADAPTER
from pivotune.pipeline.train.setup import weight_trainers

CPU = torch.device("cpu")
# model: layouts that its files are written in; kohya is what a run keeps
READ = {
    "sd1": ("kohya", "peft"), "sd2": ("kohya",), "sdxl": ("kohya", "peft", "sgm"), "flux": ("kohya", "peft"),
    "sd3": ("kohya", "peft"), "z-image": ("kohya", "peft", "comfyui"), "anima": ("kohya", "comfyui"),
    "hunyuan-video": ("kohya", "comfyui"), "wan": ("peft", "comfyui"), "lumina2": ("kohya", "comfyui"),
    "chroma": ("peft",), "qwen-image": ("kohya", "peft", "comfyui"), "cascade": ("kohya", "peft", "native"),
    "flux2-klein-4b": ("kohya", "comfyui"), "krea2": ("kohya", "comfyui"), "sana": ("kohya", "peft"),
    "pixart": ("kohya", "comfyui"), "hidream": ("kohya", "comfyui"),
}  # fmt: skip
QUICK = ("sd1", "sdxl", "z-image", "flux")
CASES = [
    pytest.param(model, layout, marks=() if model in QUICK else pytest.mark.slow)
    for model, layouts in READ.items()
    for layout in layouts
]


def in_layout(lora: RandomLora, layout: str) -> Mapping[str, RawTensor]:
    return lora.tensors if layout == "kohya" else LAYOUTS[layout](lora.tensors, lora.family, lora.pipe)


def spec_of(lora: RandomLora) -> ModelSpec:
    return ModelSpec("tiny", lora.family.name, "float32", None, None, None)


def table(path: Path, model: Model, **more: Any) -> LoraOptions:
    return lora_options(base=str(path), parts=list(part_modules(model)), **more)


def lora_options(**keys: Any) -> LoraOptions:
    [one] = options_of(TrainOptions, steps=1, lora=keys).lora
    return one


def changes_of(model: Model) -> dict[str, Tensor]:
    """What the LoRAs in a model add to its weights, by part of the pipeline and layer."""
    return {
        f"{pipe_name(model, part)}.{name}": delta
        for part, module in part_modules(model).items()
        for name, delta in deltas_of(module, ADAPTER).items()
    }


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_training_starts_from_exactly_the_weights_of_the_file(tmp_path: Path, name: str, layout: str) -> None:
    lora = random_lora(name)
    write_lora(tmp_path / "base.safetensors", in_layout(lora, layout), {})
    model = prepare(lora.pipe, spec_of(lora), None, CPU)
    one = table(tmp_path / "base.safetensors", model)
    options = options_of(TrainOptions, steps=1)
    object.__setattr__(options, "lora", (one,))
    assert (one.rank, one.alpha, one.targets) == (None, None, None)
    weight_trainers(model, options, 0, bases=read_bases(model, [one]))
    found = changes_of(model)
    assert found.keys() == lora.deltas.keys()
    for key, delta in lora.deltas.items():
        torch.testing.assert_close(found[key], delta, rtol=1e-6, atol=1e-6, msg=key)
    if layout == "kohya":
        for module in part_modules(model).values():
            for layer in module.modules():
                if isinstance(layer, LoraLayer):
                    assert (layer.r[ADAPTER], layer.lora_alpha[ADAPTER]) == (3, 2.0)


@pytest.mark.parametrize("name", ["sd1", "sdxl", "z-image"])
def test_a_fixed_lora_is_added_to_the_weights(tmp_path: Path, name: str) -> None:
    lora = random_lora(name)
    write_lora(tmp_path / "base.safetensors", lora.tensors, {})
    model = prepare(lora.pipe, spec_of(lora), None, CPU)
    layers = {key: _layer(lora.pipe, key) for key in lora.deltas}
    before = {key: layer.weight.detach().clone() for key, layer in layers.items()}
    merge_fixed_loras(model, [table(tmp_path / "base.safetensors", model, train=False, strength=0.5)])
    for key, delta in lora.deltas.items():
        torch.testing.assert_close(layers[key].weight, before[key] + 0.5 * delta, rtol=1e-6, atol=1e-6, msg=key)


def _layer(pipe: Any, key: str) -> Any:
    part, _, name = key.partition(".")
    return getattr(pipe, part).get_submodule(name)


def project(folder: Path, family: str = "sd1", more: str = "", **changes: Any) -> Recipe:
    """A project with a LoRA on the denoiser, of rank 3 with alpha 2, beside its recipe."""
    lora = random_lora(family, parts=changes.pop("parts", (READ_DENOISER.get(family, "unet"),)))
    folder.mkdir(exist_ok=True)
    write_lora(folder / "base.safetensors", in_layout(lora, changes.pop("layout", "kohya")), changes.pop("facts", {}))
    keys = f'base = "base.safetensors", learning_rate = 0.01{more}'
    if family == "z-image":
        changes.setdefault("export", 'targets = ["diffusers"]')
    train = f"resolution = 16\nlora = {{ {keys} }}"
    return load_recipe(make_project(folder, family, **{"train": train, **changes}))


READ_DENOISER = {"z-image": "transformer", "flux": "transformer"}


def errors(recipe: Recipe, *sets: str) -> list[str]:
    return [one.text for one in check_recipe(recipe.path, sets).problems if one.severity == "error"]


@pytest.mark.parametrize("family", ["sd1", pytest.param("sdxl", marks=pytest.mark.slow), "z-image"])
def test_a_run_trains_on_and_exports_the_sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    recipe = project(tmp_path, family)
    assert errors(recipe) == []
    found: dict[str, Tensor] = {}
    before_eject(monkeypatch, lambda state, model: found.update(changes_of(model)) if not found else None)
    folder = run_project(recipe, tmp_path / "run").folder
    start = random_lora(family, parts=(READ_DENOISER.get(family, "unet"),)).deltas
    assert found.keys() == start.keys()
    assert any(not torch.allclose(found[key], start[key], atol=1e-4) for key in start)
    again = folder / "exports" / "tiny.safetensors"
    model = load_model(recipe.model, CPU)
    options = options_of(TrainOptions, steps=1)
    object.__setattr__(options, "lora", (lora_options(base=str(again)),))
    weight_trainers(model, options, 0, bases=read_bases(model, options.lora))
    for key, delta in changes_of(model).items():
        torch.testing.assert_close(delta, found[key], rtol=0, atol=1e-6, msg=key)


@pytest.mark.parametrize("family", ["sd1", pytest.param("z-image", marks=pytest.mark.slow)])
def test_embeddings_are_trained_under_a_fixed_lora_that_does_not_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    recipe = project(tmp_path, family, ", train = false, strength = 0.5")
    assert errors(recipe) == []
    models: list[Model] = []
    load = runner.load_model

    def kept(spec: ModelSpec, device: torch.device) -> Model:
        models.append(load(spec, device))
        return models[-1]

    monkeypatch.setattr(runner, "load_model", kept)
    digest = (tmp_path / "base.safetensors").read_bytes()
    folder = run_project(recipe, tmp_path / "run").folder
    other = load(recipe.model, CPU)
    merge_fixed_loras(other, recipe.fixed_loras)
    for name, weight in models[0].denoiser.named_parameters():
        assert torch.equal(weight, other.denoiser.get_parameter(name)), name
    assert (tmp_path / "base.safetensors").read_bytes() == digest
    plain = load(recipe.model, CPU)
    assert any(not torch.equal(weight, plain.denoiser.get_parameter(name))
               for name, weight in models[0].denoiser.named_parameters())  # fmt: skip
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    [encoders] = [one["encoders"] for one in manifest["embeddings"]]
    assert all(min(one["distance"]) > 0 for one in encoders.values())
    text = "trained under the LoRA base.safetensors, strength 0.5; load it beside what is exported"
    assert text in manifest["stages"][2]["notes"]
    assert text in (folder / "report.html").read_text("utf-8")
    assert text[1:] in (folder / "exports/diffusers/HOW-TO.txt").read_text("utf-8")
    assert text[1:] in (folder / "exports/diffusers/load.py").read_text("utf-8")
    assert not list(folder.glob("exports/**/tiny.safetensors"))
    assert not any(one["kind"] == "lora" for one in manifest["artefacts"])
    from pivotune.converters.safetensors_file import read

    without = load_recipe(make_project(tmp_path / "without", family, train="resolution = 16", export="targets = []"))
    unlike = run_project(without, tmp_path / "without/run").folder
    vectors = [from_raw(next(iter(read(one / "exports/tiny_embeddings/cat.safetensors")[0].values())))
               for one in (folder, unlike)]  # fmt: skip
    assert not torch.equal(*vectors)
    for image in ("before-000-0.png", "after-000-0.png"):
        assert (folder / "images" / image).read_bytes() != (unlike / "images" / image).read_bytes()


@pytest.mark.parametrize("fixed", [False, True], ids=["trained", "fixed"])
def test_it_resumes_to_the_same_bytes_and_notices_a_changed_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fixed: bool
) -> None:
    recipe = project(tmp_path, "sd1", ", train = false" if fixed else "", export="targets = []")
    whole = run_project(recipe, tmp_path / "whole").folder
    interrupt(monkeypatch, recipe, tmp_path / "parts")
    shutil.copytree(tmp_path / "parts", tmp_path / "other")
    run_project(recipe, tmp_path / "parts")
    assert made_files(tmp_path / "parts") == made_files(whole)
    lora = random_lora("sd1", parts=("unet",))
    tensors = {name: to_raw(from_raw(one) * 1.5) for name, one in lora.tensors.items()}
    write_lora(tmp_path / "base.safetensors", tensors, {}, overwrite=True)
    with pytest.raises(StageError, match="contains an unfinished run with other inputs") as raised:
        run_project(recipe, tmp_path / "other")
    assert "base.safetensors" in str(raised.value)
    again = replay(whole, STAGES, out=tmp_path / "again", progress=lambda text: None, bar=False)
    assert any("lora/0/base.safetensors" in text for text in again.inputs)
    assert again.differences


def test_a_run_resumes_with_the_same_file_in_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = project(tmp_path, "sd1", export="targets = []")
    interrupt(monkeypatch, recipe, tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "base.safetensors", tmp_path / "elsewhere" / "base.safetensors")
    place = json.dumps(str(tmp_path / "elsewhere" / "base.safetensors"))
    moved = load_recipe(recipe.path, [f"train.lora.base={place}"])
    lines: list[str] = []
    run_project(moved, tmp_path / "run", progress=lines.append)
    assert any("resum" in line for line in lines)


def test_a_later_stage_continues_the_lora_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = (
        '[[stage]]\nkind = "train"\nsteps = 2\nbatch_size = 1\nembeddings = false\n'
        'lora = { base = "base.safetensors", learning_rate = 0.01 }'
    )
    recipe = project(tmp_path, "sd1", stages=second, export="targets = []")
    assert errors(recipe) == []
    starts: list[dict[str, Tensor]] = []
    from pivotune.pipeline.run import training

    build = training.weight_trainers

    def spied(model: Model, *arguments: Any) -> Any:
        made = build(model, *arguments)
        starts.append(changes_of(model))
        return made

    monkeypatch.setattr(training, "weight_trainers", spied)
    run_project(recipe, tmp_path / "run")
    assert len(starts) == 2
    assert any(not torch.allclose(starts[0][key], starts[1][key]) for key in starts[0])
    text = errors(recipe, "train.2.lora={ rank = 3 }")
    assert any("has another base; use the same" in one for one in text)


def test_check_names_what_the_file_answers(tmp_path: Path) -> None:
    recipe = project(tmp_path)
    assert errors(recipe, "train.lora.rank=3") == []
    assert errors(recipe, "train.lora.rank=4") == ["base.safetensors has rank 3, not 4; remove rank"]
    assert errors(recipe, "train.lora.alpha=3") == ["with base, alpha is that of the file; remove it"]
    assert errors(recipe, 'train.lora.targets="all"') == ["with base, targets is that of the file; remove it"]
    [text] = errors(recipe, "train.lora.dora=true")
    assert text.startswith("with base, the LoRA is that of the file")
    [text] = errors(recipe, "train.lora.strength=0.5")
    assert text.startswith("strength is of a LoRA with train = false")
    assert errors(recipe, "train.lora={ train = false }") == ["train = false needs base, the file of the LoRA"]
    [text] = errors(recipe, 'train.lora.base="none.safetensors"')
    assert text.endswith("none.safetensors does not exist")
    fixed = "train.lora.train=false"
    assert errors(recipe, fixed, "train.embeddings=false")[0].startswith("nothing to train")
    [text] = errors(recipe, fixed, 'train.finetune={ parts = ["clip_l"] }')
    assert text.startswith("not supported with a LoRA with train = false")


def test_a_fixed_lora_is_that_of_every_train_stage(tmp_path: Path) -> None:
    second = '[[stage]]\nkind = "train"\nsteps = 2\nbatch_size = 1\n'
    [text] = errors(project(tmp_path, "sd1", ", train = false", stages=second))
    assert text.endswith("added to the model for the whole run; write the same in every train stage")


@pytest.mark.parametrize(("change", "text"), [
    ({"x.hada_w1_a": (4, 2), "x.hada_w1_b": (2, 4), "x.hada_w2_a": (4, 2), "x.hada_w2_b": (2, 4)}, "(x has LoHa)"),
    ({"x.lokr_w1": (2, 2), "x.lokr_w2": (2, 2)}, "(x has LoKr)"),
    ({"x.dora_scale": (4, 1), "x.lora_up.weight": (4, 2), "x.lora_down.weight": (2, 4)}, "is a DoRA"),
    ({"x.lora_mid.weight": (2, 2), "x.lora_up.weight": (4, 2), "x.lora_down.weight": (2, 4)}, "LoCon with lora_mid"),
    ({"x.diff": (4, 4)}, "full difference"),
    ({"x.lora_up.weight": (4, 2), "x.lora_down.weight": (3, 4)}, "which do not fit together"),
    ({"x.lora_up.weight": (4, 2), "x.lora_down.weight": (2, 4), "x.diff_b": (4,)}, "has diff_b in x"),
    ({"x": (4, 2)}, "has a tensor 'x' of no LoRA"),
    ({"base_model.model.x.lora_A.weight": (2, 4), "base_model.model.x.lora_B.weight": (4, 2)}, "adapter_config.json"),
])  # fmt: skip
def test_other_kinds_are_refused_with_the_reason(tmp_path: Path, change: Any, text: str) -> None:
    recipe = project(tmp_path)
    write_lora(
        tmp_path / "base.safetensors", {name: to_raw(torch.ones(shape)) for name, shape in change.items()}, {},
        overwrite=True,
    )  # fmt: skip
    [found] = [one for one in errors(recipe) if "is a LoRA for" not in one]
    assert text in found
    assert "\n" not in found


def test_names_of_the_model_s_own_code_are_refused_where_they_join_layers(tmp_path: Path) -> None:
    recipe = project(tmp_path, "flux", export='targets = ["diffusers"]')
    assert errors(recipe) == []
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    shapes = {"lora_up": (9216, 2), "lora_down": (2, 3072)}
    tensors = {f"{name}.{end}.weight": to_raw(torch.ones(shape)) for end, shape in shapes.items()}
    write_lora(tmp_path / "base.safetensors", tensors, {}, overwrite=True)
    [text] = errors(recipe)
    assert text.startswith(
        "base.safetensors names layers as the model's own code (lora_unet_double_blocks_0_img_attn_qkv)"
    )
    model = load_model(recipe.model, CPU)
    [options] = [one for _, one in recipe.stages_with(TrainOptions)]
    with pytest.raises(StageError, match=r"1 of its 1 module .* cannot be mapped to layers of this FLUX"):
        read_bases(model, options.lora)


def test_a_lora_of_another_family_is_refused(tmp_path: Path) -> None:
    recipe = project(tmp_path, facts={"ss_base_model_version": "sdxl_base_v1-0"})
    assert errors(recipe) == ["base.safetensors is a LoRA for sdxl, not for Stable Diffusion 1.x"]


def test_modules_that_the_model_lacks_are_one_line_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = project(tmp_path)
    lora = random_lora("sd1", parts=("unet",))
    odd = {name.replace("down_blocks_1", "down_blocks_7"): one for name, one in lora.tensors.items()}
    write_lora(tmp_path / "base.safetensors", odd, {}, overwrite=True)
    monkeypatch.setattr(runner, "load_model", None)
    with pytest.raises(StageError, match=r"cannot be mapped to layers of this Stable Diffusion 1.x model") as raised:
        run_project(recipe, tmp_path / "run")
    assert "down_blocks_7" in str(raised.value)
    shapes = {name: to_raw(torch.ones(3, 99)) if "lora_down" in name else one for name, one in lora.tensors.items()}
    write_lora(tmp_path / "base.safetensors", shapes, {}, overwrite=True)
    with pytest.raises(StageError, match=r"is for another model: lora_unet_.* is of a layer of shape"):
        run_project(recipe, tmp_path / "run")


def test_parts_are_those_of_the_file(tmp_path: Path) -> None:
    recipe = project(tmp_path, parts=("unet", "text_encoder"))
    model = skeleton(recipe.model)
    [options] = [one for _, one in recipe.stages_with(TrainOptions)]
    with pytest.raises(StageError, match=r'has modules of denoiser, clip_l; set parts = \["denoiser", "clip_l"\]'):
        read_bases(model, options.lora)


def test_the_plan_names_the_file(tmp_path: Path) -> None:
    from click.testing import CliRunner

    recipe = project(tmp_path)
    shown = CliRunner().invoke(plan, [str(recipe.path)]).output
    assert "the LoRA base.safetensors on the denoiser" in shown
    shown = CliRunner().invoke(plan, [str(recipe.path), "--set", "train.lora.train=false"]).output
    assert "trained vectors of <cat>, under the LoRA base.safetensors (strength 1)" in shown


def test_every_layout_that_we_export_is_read() -> None:
    written = {layout for program in programs().values() for layout in program.lora_layouts.values()}
    assert written <= {layout for layouts in READ.values() for layout in layouts}
