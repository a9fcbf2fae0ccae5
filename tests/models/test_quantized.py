"""Parts of a model whose linear layers are packed: gradients, training, LoRAs, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib import util

import pytest
import torch
from projects import BUILD, family_name, make_project, run_project
from safetensors.torch import load_file
from tiny import tiny_flux
from torch import nn

from pivotune.converters.families import families
from pivotune.pipeline.checks.recipe import check_recipe
from pivotune.pipeline.errors import StageError
from pivotune.pipeline.models.load import load_model, skeleton
from pivotune.pipeline.models.quantized import QuantizedLinear, packed_bytes, quantizable
from pivotune.pipeline.recipe.defaults import QUANTIZED
from pivotune.pipeline.recipe.document import shipped_folder
from pivotune.pipeline.recipe.load import load_recipe

CPU = torch.device("cpu")
ERRORS = {"nf4": 0.1, "int8": 0.006, "float8": 0.03}  # relative error of random weights
FORMATS = 'weights = { denoiser = "nf4", t5 = "int8", clip_l = "float8", vae = "bfloat16" }'


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", QUANTIZED)
def test_a_packed_layer_gives_the_product_and_gradient_of_its_unpacked_weights(kind, dtype):
    layer = nn.Linear(130, 64, dtype=dtype).requires_grad_(False)
    packed = QuantizedLinear(layer, kind, CPU)
    given = torch.randn(2, 3, 130, dtype=dtype, requires_grad=True)
    found = packed(given)
    assert torch.equal(found, nn.functional.linear(given, packed.dense(dtype), layer.bias))
    gradient = torch.randn_like(found)
    found.backward(gradient)
    assert torch.equal(given.grad, gradient @ packed.dense(dtype))
    error = (packed.dense(dtype) - layer.weight).float().norm() / layer.weight.float().norm()
    assert 0 < error < ERRORS[kind]
    assert not packed.weight.is_floating_point()


@pytest.mark.parametrize("kind", ["int8", "float8"])
def test_rows_of_zeros_and_largest_values_are_exact(kind):
    layer = nn.Linear(4, 3, bias=False).requires_grad_(False)
    layer.weight[:] = torch.tensor([[0.0] * 4, [1.0, -1.0, 0.0, 1.0], [127.0, 0.0, -127.0, 0.0]])
    assert torch.equal(QuantizedLinear(layer, kind, CPU).dense(torch.float32), layer.weight)


@pytest.mark.parametrize("name", ["sd1", "flux", "pixart", "z-image", "flux2-klein-4b", "hidream", "wan"])
def test_token_tables_and_norms_are_never_packed(name):
    pipe, family = BUILD[name](), families()[family_name(name)]
    for module in (family.denoiser_module, *(one.module for one in family.encoders)):
        part = getattr(pipe, module, None)
        layers = list(quantizable(part, torch.float32))
        assert layers
        packed = {id(layer.weight) for _, _, layer in layers}
        if hasattr(part, "get_input_embeddings"):
            assert id(part.get_input_embeddings().weight) not in packed
        assert all(id(one.weight) not in packed for one in part.modules() if isinstance(one, nn.LayerNorm))


@pytest.mark.parametrize("kind", QUANTIZED)
def test_the_estimate_is_the_size_of_the_packed_part(kind):
    pipe = tiny_flux()
    part = pipe.transformer.requires_grad_(False)
    estimate = packed_bytes(part, kind, torch.float32)
    for parent, name, layer in list(quantizable(part, torch.float32)):
        setattr(parent, name, QuantizedLinear(layer, kind, CPU))
    scales = [buffer for name, buffer in part.named_buffers() if name.endswith(".scale")]
    stored = sum(tensor.numel() * tensor.itemsize for tensor in (*part.parameters(), *scales))
    assert stored == pytest.approx(estimate, rel=0.01)


def flux_project(folder, **parts):
    parts = {"train": "resolution = 16", "export": 'targets = ["comfyui"]', "model": FORMATS} | parts
    return make_project(folder, "flux", **parts)


def test_embeddings_and_a_lora_are_trained_over_packed_parts(tmp_path):
    train = "resolution = 16\ngradient_checkpointing = true\nlora = { rank = 2, learning_rate = 1e-2 }"
    recipe = flux_project(tmp_path, train=train)
    one, two = (run_project(recipe, tmp_path / name) for name in ("one", "two"))
    manifest = json.loads((one.folder / "manifest.json").read_text("utf-8"))
    assert manifest["model"]["weights"] == {"clip_l": "float8", "denoiser": "nf4", "t5": "int8", "vae": "bfloat16"}
    assert manifest["status"] == "finished"
    files = sorted(path.relative_to(one.folder) for path in one.folder.glob("exports/**/*.safetensors"))
    assert files
    for file in files:
        assert (one.folder / file).read_bytes() == (two.folder / file).read_bytes()
    again = train.replace("rank = 2", f"base = '{next(one.folder.glob('exports/*.safetensors'))}'")
    assert run_project(flux_project(tmp_path / "again", train=again), tmp_path / "trained on").folder.is_dir()
    lora = load_file(next(one.folder.glob("exports/*.safetensors")))
    assert any(tensor.abs().max() > 0 for name, tensor in lora.items() if "lora_B" in name or "lora_up" in name)


def test_packed_parts_change_the_result_a_little(tmp_path):
    plain = run_project(flux_project(tmp_path / "a", model=""), tmp_path / "plain")
    packed = run_project(flux_project(tmp_path / "b", model='weights = { t5 = "int8" }'), tmp_path / "packed")
    losses = [
        [json.loads(line)["loss"] for line in (run.folder / "metrics.jsonl").read_text("utf-8").splitlines()]
        for run in (plain, packed)
    ]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_a_model_is_loaded_packed_part_by_part(tmp_path):
    tiny_flux().save_pretrained(tmp_path / "model")
    spec = replace(load_recipe(flux_project(tmp_path)).model, dtype="bfloat16")
    model = load_model(spec, CPU)
    kinds = {
        name: {layer.kind for layer in part.modules() if isinstance(layer, QuantizedLinear)}
        for name, part in model.pipe.components.items() if isinstance(part, nn.Module)
    }  # fmt: skip
    assert kinds == {"transformer": {"nf4"}, "text_encoder": {"float8"}, "text_encoder_2": {"int8"}, "vae": set()}
    assert all(type(encoder.module.get_input_embeddings()) is nn.Embedding for encoder in model.encoders)
    assert model.pipe.transformer.dtype == torch.bfloat16


def test_memory_counts_packed_parts(tmp_path):
    spec = load_recipe(flux_project(tmp_path)).model
    transformer = skeleton(spec).pipe.transformer
    assert packed_bytes(transformer, "nf4", torch.bfloat16) < packed_bytes(transformer, None, torch.bfloat16)


def test_what_packed_weights_do_not_allow_is_refused_by_check(tmp_path):
    def texts(model, train="resolution = 16"):
        checked = check_recipe(flux_project(tmp_path, model=model, train=train))
        return [problem.text for problem in checked.problems if problem.severity == "error"]

    assert texts(FORMATS) == []
    assert "has no part 't6'" in texts('weights = { t6 = "int8" }')[0]
    assert texts('weights = { vae = "int8" }')[0].startswith("int8 is not for vae; use a dtype")
    assert (
        "bfloat16 is not for t5; use nf4, int8, float8, or model.dtype for all parts"
        in texts('weights = { t5 = "bfloat16" }')[0]
    )
    assert "a fine-tune exports the whole model" in texts(FORMATS, "finetune = { parts = ['denoiser'] }")[0]
    fixed = "lora = { base = 'lora.safetensors', train = false }"
    assert any("is added to the weights, which are packed" in text for text in texts(FORMATS, fixed))
    assert "dora needs the norms" in texts(FORMATS, "lora = { rank = 2, dora = true }")[0]


def test_without_bitsandbytes_nf4_says_what_to_do(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(StageError, match="nf4 needs bitsandbytes"):
        QuantizedLinear(nn.Linear(64, 64).requires_grad_(False), "nf4", CPU)


def gguf_file(path, part):
    """The weights of a part in a GGUF file: those of linear layers packed as Q8_0 where their rows allow it."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(str(path), "flux")
    linear = {f"{name}.weight" for name, one in part.named_modules() if type(one) is nn.Linear}
    packed = 0
    for name, tensor in part.state_dict().items():
        values = tensor.float().numpy()
        if name in linear and tensor.shape[1] % 32 == 0:
            kind, packed = gguf.GGMLQuantizationType.Q8_0, packed + 1
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return packed


def test_a_denoiser_in_a_gguf_file_stays_packed_and_trains_embeddings(tmp_path):
    packed = gguf_file(tmp_path / "flux.gguf", tiny_flux().transformer)
    recipe = flux_project(tmp_path, model='denoiser = "flux.gguf"', train="resolution = 16\nlora = { rank = 2 }")
    model = load_model(load_recipe(recipe).model, CPU)
    layers = [one for one in model.denoiser.modules() if isinstance(one, QuantizedLinear)]
    assert len(layers) == packed > 0
    plain = dict(tiny_flux().transformer.named_modules())
    for name, one in model.denoiser.named_modules():
        if isinstance(one, QuantizedLinear):
            error = one.dense(torch.float32) - plain[name].weight
            assert error.norm() < 0.01 * plain[name].weight.norm()
    run = run_project(recipe, tmp_path / "run")
    manifest = json.loads((run.folder / "manifest.json").read_text("utf-8"))
    assert manifest["status"] == "finished"
    assert "transformer/flux.gguf" in manifest["model"]["sha256"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_denoiser_of_its_own_is_loaded_in_place_of_the_models(tmp_path, kind):
    pipe = tiny_flux()
    with torch.no_grad():
        pipe.transformer.proj_out.bias.fill_(0.5)
    pipe.transformer.save_pretrained(tmp_path / "transformer")
    path = "transformer/diffusion_pytorch_model.safetensors" if kind == "file" else "transformer"
    spec = load_recipe(flux_project(tmp_path, model=f'denoiser = "{path}"')).model
    assert (load_model(spec, CPU).denoiser.proj_out.bias == 0.5).all()


def test_check_says_what_is_wrong_with_a_denoiser(tmp_path):
    def texts(model):
        checked = check_recipe(flux_project(tmp_path, model=model))
        return [problem.text for problem in checked.problems if problem.severity == "error"]

    assert "does not exist" in texts('denoiser = "none.gguf"')[0]
    (tmp_path / "text.txt").write_text("", "utf-8")
    tiny_flux().transformer.save_pretrained(tmp_path / "odd")
    config = json.loads((tmp_path / "odd" / "config.json").read_text("utf-8")) | {"auto_map": {"AutoModel": "x.Y"}}
    (tmp_path / "odd" / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(StageError):
        load_model(load_recipe(flux_project(tmp_path, model='denoiser = "odd"')).model, CPU)
    assert "is not a file of a denoiser" in texts('denoiser = "text.txt"')[0]
    (tmp_path / "page.gguf").write_bytes(b"<html>")
    if util.find_spec("gguf") is not None:
        assert "is not a GGUF file" in texts('denoiser = "page.gguf"')[0]
    with pytest.raises(StageError, match=r"it has no config.json"):
        load_model(load_recipe(flux_project(tmp_path, model='denoiser = "images"')).model, CPU)
    (tmp_path / "bad.safetensors").write_bytes(b"<html>")
    assert "not a safetensors file" in texts('denoiser = "bad.safetensors"')[0]
    with pytest.raises(StageError, match=r"model.denoiser = .* cannot be loaded"):
        load_model(load_recipe(flux_project(tmp_path, model='denoiser = "bad.safetensors"')).model, CPU)


def test_a_denoiser_is_among_the_inputs_where_the_recipe_names_no_family(tmp_path):
    shutil.copytree(shipped_folder() / "micro" / "model" / "unet", tmp_path / "unet")
    recipe = load_recipe("quickstart").model
    model = load_model(replace(recipe, family=None, denoiser=str(tmp_path / "unet")), CPU)
    assert model.parts == {"unet": tmp_path / "unet"}
