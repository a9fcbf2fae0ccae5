"""LoRAs on all parts of every family, for ComfyUI and diffusers: each module is applied, with the same numbers."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
import torch
from peft.tuners.lora import LoraLayer
from projects import BUILD
from random_lora import deltas_of, random_lora
from safetensors.torch import load_file

from pivotune.converters.families import families
from pivotune.converters.programs import programs
from pivotune.converters.programs.loras import applied, applies_encoder
from pivotune.converters.safetensors_file import write
from pivotune.converters.stored import Stored
from pivotune.pipeline.export.lora_layouts import comfyui, for_program, peft, split_loaded
from pivotune.pipeline.export.script import ADD_LORA
from pivotune.pipeline.tensors import from_raw, to_raw
from pivotune.pipeline.train.lora import lora_layers

MODELS = [name for name in BUILD if name not in ("sd3-without-t5", "flux-schnell", "wan-2.2")]
NAMES = json.loads(Path(__file__).with_name("comfyui_names.json").read_text("utf-8"))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("dora", [False, True])
def test_diffusers_and_the_script_load_every_module(tmp_path, model, dora):
    """The pipeline loads what we say it does; the lines of load.py add the rest."""
    lora = random_lora(model, dora=dora)
    pipe, program = lora.pipe, programs()["diffusers"]
    made = for_program(lora.tensors, program, lora.family, pipe)
    loaded, parts = split_loaded(made, program, lora.family)
    if loaded:
        write(tmp_path / "x.safetensors", loaded, {"format": "pt"})
        pipe.load_lora_weights(tmp_path, weight_name="x.safetensors", adapter_name="lora")
        verdict = applied(program, Stored(tmp_path / "x.safetensors", loaded), lora.family)
        assert (verdict.applied, verdict.notes, verdict.refusal) == (len(found(pipe, lora.family)), (), "")
    assert bool(loaded) == hasattr(pipe, "load_lora_weights")
    if parts:
        write(tmp_path / "parts.safetensors", parts, {"format": "pt"})
        import peft as library

        script = "\n".join([*ADD_LORA, "add_lora(weights)"])
        exec(script, {"pipe": pipe, "weights": load_file(tmp_path / "parts.safetensors"), **vars(library)})
    assert found(pipe, lora.family).keys() == lora.deltas.keys()
    for name, delta in found(pipe, lora.family).items():
        torch.testing.assert_close(delta, lora.deltas[name], rtol=1e-5, atol=1e-5)
    magnitudes = [
        layer.lora_magnitude_vector
        for attribute in lora.family.lora_prefixes
        for layer in getattr(pipe, attribute).modules()
        if isinstance(layer, LoraLayer)
    ]
    assert all(("lora" in one) == dora for one in magnitudes)


def found(pipe, family):
    """What the LoRA named `lora` adds, of all parts of a pipeline."""
    return {
        f"{attribute}.{name}": delta
        for attribute in family.lora_prefixes
        for name, delta in deltas_of(getattr(pipe, attribute), "lora").items()
    }


@pytest.mark.parametrize("model", MODELS)
def test_a_file_with_all_parts_is_read_by_diffusers_as_the_verdict_says(tmp_path, model):
    lora = random_lora(model)
    program = programs()["diffusers"]
    made = peft(lora.tensors, lora.family, lora.pipe)
    write(tmp_path / "x.safetensors", made, {"format": "pt"})
    verdict = applied(program, Stored(tmp_path / "x.safetensors", made), lora.family)
    if verdict.refusal:
        with pytest.raises((ValueError, AttributeError)):
            lora.pipe.load_lora_weights(tmp_path, weight_name="x.safetensors", adapter_name="lora")
        return
    lora.pipe.load_lora_weights(tmp_path, weight_name="x.safetensors", adapter_name="lora")
    assert len(found(lora.pipe, lora.family)) == verdict.applied
    assert bool(verdict.notes) == (verdict.applied < len(lora.deltas))


@pytest.mark.parametrize("model", [name for name in MODELS if name != "sana"])
def test_comfyui_applies_every_module(model):
    lora = random_lora(model)
    program = programs()["comfyui"]
    made = for_program(lora.tensors, program, lora.family, lora.pipe) or lora.tensors
    verdict = applied(program, Stored(Path("x.safetensors"), made), lora.family)
    assert (verdict.applied, verdict.notes, verdict.refusal) == (verdict.modules, (), "")
    assert all(applies_encoder(program, lora.family, key) for key in lora.family.widths)


def test_diffusers_reads_comfyuis_names_of_anima(tmp_path):
    """Its loader renames them; both files add the same to the denoiser."""
    lora = random_lora("anima")
    made = {name: raw for name, raw in comfyui(lora.tensors, lora.family, lora.pipe).items() if "text_enc" not in name}
    write(tmp_path / "x.safetensors", made, {"format": "pt"})
    lora.pipe.load_lora_weights(tmp_path, weight_name="x.safetensors", adapter_name="lora")
    deltas = {name: one for name, one in lora.deltas.items() if name.startswith("transformer.")}
    applied_now = found(lora.pipe, lora.family)
    assert applied_now.keys() == deltas.keys()
    for name, delta in deltas.items():
        torch.testing.assert_close(applied_now[name], delta, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model", NAMES)
def test_comfyuis_names_of_one_block(model):
    """As its loader maps them: `real_comfyui.py` gives it such files."""
    lora = random_lora(model)
    names = {name.rpartition(".lora_")[0] for name in comfyui(lora.tensors, lora.family, lora.pipe) if "lora_A" in name}
    first = {name for name in names if not re.search(r"(layers|blocks?|refiner)\.[1-9]\d*\.", name)}
    assert sorted(first) == NAMES[model]


def test_every_family_with_comfyuis_layout_has_its_names_pinned():
    assert {name for name, layout in programs()["comfyui"].lora_layouts.items() if layout == "comfyui"} == {
        *NAMES, "flux2-klein-9b"
    }  # fmt: skip


@pytest.mark.parametrize(("program", "unknown"), [("comfyui", 4 * 4), ("onetrainer", 36)])  # all or nothing
def test_the_layers_of_stable_cascade_have_the_names_of_its_own_code(program, unknown):
    """As ComfyUI's loader maps them, and as OneTrainer writes and reads them."""
    lora = random_lora("cascade")
    made = for_program(lora.tensors, programs()[program], lora.family, lora.pipe)
    names = {name.partition(".")[0] for name in made}
    block, layer = "lora_prior_unet_down_blocks_0_", "lora_prior_te_text_model_encoder_layers_0_"
    assert {name for name in names if name.startswith(block)} == {
        *(f"{block}2_attention_attn_{one}" for one in ("to_q", "to_k", "to_v", "out_proj")),
        *(f"{block}0_channelwise_{one}" for one in (0, 4)),
    }
    assert {name for name in names if name.startswith(layer)} >= {f"{layer}self_attn_q_proj", f"{layer}mlp_fc1"}
    assert {name.partition(".")[2] for name in made} == {"lora_down.weight", "lora_up.weight", "alpha"}
    values = {name: raw for name, raw in lora.tensors.items() if "attention_to_q" in name and "down_blocks_0" in name}
    assert len(values) == 3
    for name, raw in values.items():
        assert made[name.replace("attention_to_q", "attention_attn_to_q")] == raw
    verdict = applied(programs()[program], Stored(Path("x.safetensors"), made), lora.family)
    assert (verdict.applied, verdict.notes) == (verdict.modules, ())
    wrong = applied(programs()[program], Stored(Path("x.safetensors"), lora.tensors), lora.family)
    assert wrong.modules - wrong.applied == unknown  # the attention of four blocks


PARTS = {
    "lumina2": {
        "diffusion_model.layers.0.attention.qkv": ["layers.0.attn.to_q", "layers.0.attn.to_k", "layers.0.attn.to_v"],
    },
    "hunyuan-video": {
        "diffusion_model.double_blocks.0.img_attn.qkv": [f"transformer_blocks.0.attn.to_{one}" for one in "qkv"],
        "diffusion_model.double_blocks.0.txt_attn.qkv": [f"transformer_blocks.0.attn.add_{one}_proj" for one in "qkv"],
        "diffusion_model.single_blocks.0.linear1": [
            *(f"single_transformer_blocks.0.attn.to_{one}" for one in "qkv"), "single_transformer_blocks.0.proj_mlp"
        ],
        "diffusion_model.txt_in.individual_token_refiner.blocks.0.self_attn.qkv": [
            f"context_embedder.token_refiner.refiner_blocks.0.attn.to_{one}" for one in "qkv"
        ],
    },
}  # fmt: skip


@pytest.mark.parametrize("model", PARTS)
@pytest.mark.parametrize("targets", ["attention+feed-forward", ("to_q", "to_v", "proj_out")])
def test_a_joined_lora_adds_what_its_parts_add(model, targets):
    """A part that has no LoRA gets zeros."""
    lora = random_lora(model, targets=targets) if isinstance(targets, str) else denoiser_alone(model, targets)
    made = comfyui(lora.tensors, lora.family, lora.pipe)
    for name, parts in PARTS[model].items():
        wanted = torch.cat([
            lora.deltas.get(f"transformer.{part}", torch.zeros_like(weight(lora.pipe, part))) for part in parts
        ])  # fmt: skip
        if not wanted.any():
            continue
        up, down = (from_raw(made[f"{name}.lora_{one}.weight"]) for one in "BA")
        torch.testing.assert_close(up @ down, wanted, rtol=1e-6, atol=1e-6)
        assert len(down) == 3 * sum(f"transformer.{part}" in lora.deltas for part in parts)
    assert len([name for name in made if "lora_A" in name]) < len(lora.deltas) or not isinstance(targets, str)


def weight(pipe, name):
    return pipe.transformer.get_submodule(name).weight.detach()


def denoiser_alone(model, targets, *, dora=False):
    return random_lora(model, targets=targets, dora=dora, parts=("transformer",))


def test_a_joined_dora_has_the_norms_of_weights_without_a_lora():
    """With them those rows stay as they are."""
    lora = denoiser_alone("lumina2", ("to_q", "to_v"), dora=True)
    made = comfyui(lora.tensors, lora.family, lora.pipe)
    scale = from_raw(made["diffusion_model.layers.0.attention.qkv.dora_scale"])
    q, k = (weight(lora.pipe, f"layers.0.attn.to_{one}") for one in "qk")
    assert scale.shape == (len(q) + 2 * len(k), 1)
    torch.testing.assert_close(scale[len(q) : len(q) + len(k), 0], k.norm(dim=1))
    own = from_raw(lora.tensors["lora_unet_layers_0_attn_to_q.dora_scale"])
    assert torch.equal(scale[: len(q)], own)


def test_diffusers_reads_comfyuis_names_of_wan(tmp_path):
    """It has tables of its own for them."""
    lora = denoiser_alone("wan", "all")
    write(tmp_path / "x.safetensors", comfyui(lora.tensors, lora.family, lora.pipe), {"format": "pt"})
    lora.pipe.load_lora_weights(tmp_path, weight_name="x.safetensors", adapter_name="lora")
    got = deltas_of(lora.pipe.transformer, "lora")
    assert {f"transformer.{name}" for name in got} == lora.deltas.keys()
    for name, delta in got.items():
        torch.testing.assert_close(delta, lora.deltas[f"transformer.{name}"], rtol=1e-5, atol=1e-5)


REAL = {
    "lumina2": ("Lumina2Transformer2DModel", {"num_layers": 1}),
    "hunyuan-video": ("HunyuanVideoTransformer3DModel", {"num_layers": 1, "num_single_layers": 1}),
}


@pytest.mark.parametrize("name", REAL)
def test_diffusers_reads_comfyuis_names_of_joined_layers(name):
    """Its tables know the real widths alone; modules of the model in its size, without weights."""
    kind, options = REAL[name]
    with torch.device("meta"):
        pipe = SimpleNamespace(transformer=getattr(diffusers, kind)(**options))
    family, tensors = families()[name], {}
    for layer in lora_layers(pipe.transformer, "attention+feed-forward"):
        key = f"{family.lora_prefixes['transformer']}_{layer.replace('.', '_')}"
        module = pipe.transformer.get_submodule(layer)
        tensors[f"{key}.lora_down.weight"] = to_raw(torch.randn(1, module.in_features))
        tensors[f"{key}.lora_up.weight"] = to_raw(torch.randn(module.out_features, 1))
        tensors[f"{key}.alpha"] = to_raw(torch.tensor(0.5))
    state = {key: from_raw(raw) for key, raw in comfyui(tensors, family, pipe).items()}
    if name == "hunyuan-video":  # the names of its first release, which ComfyUI has too
        state = {first_names(key): one for key, one in state.items()}
    if name == "lumina2":  # it wants the modulation too
        for block in ("layers.0", "noise_refiner.0", "noise_refiner.1"):
            for one in "AB":
                state[f"diffusion_model.{block}.adaLN_modulation.1.lora_{one}.weight"] = torch.zeros(1, 1)
    read = getattr(diffusers, families()[name].pipeline).lora_state_dict(state)
    made = {key: from_raw(raw) for key, raw in peft(tensors, family, pipe).items()}
    modules = [key.removesuffix(".lora_A.weight") for key in made if "lora_A" in key]
    assert {f"{module}.lora_A.weight" for module in modules} == {
        key for key in read if "lora_A" in key and "norm" not in key
    }
    probe = torch.randn(64, 1)
    for module in modules:
        if re.search(r"token_refiner.*\.to_[qkv]", module):
            continue  # its converter cuts A in three there, too
        ours, theirs = (
            one[f"{module}.lora_B.weight"] @ (one[f"{module}.lora_A.weight"][:, :64] @ probe) for one in (made, read)
        )
        torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)


def first_names(key: str) -> str:
    key = key.replace("_attn.qkv", "_attn_qkv").replace("_attn.proj", "_attn_proj").replace("_mod.lin.", "_mod.linear.")
    return key.replace("mlp.0.", "mlp.fc1.").replace("mlp.2.", "mlp.fc2.")
