"""A LoRA under the names each program looks for: where diffusers can read them, it answers alike."""

import pytest
import torch
from peft import LoraConfig
from tiny import real_blocks, tiny_sd2, tiny_sdxl

from pivotune.converters.families import families
from pivotune.converters.programs import programs
from pivotune.converters.safetensors_file import read, write
from pivotune.pipeline.errors import StageError
from pivotune.pipeline.export.layouts import sgm_module, unet_shape
from pivotune.pipeline.export.lora_layouts import for_program, has_dora, ignored_parts, peft, settled, sgm
from pivotune.pipeline.tensors import to_raw

UNET = ["to_q", "to_out.0", "ff.net.0.proj", "proj_in", "conv1", "conv2", "conv_shortcut", "time_emb_proj", "conv"]
TEXT = ["q_proj", "out_proj", "fc1"]
BUILD = {"sd2": tiny_sd2, "sdxl": tiny_sdxl}


def add(model, targets, *, dora):
    config = LoraConfig(r=3, lora_alpha=2, target_modules=targets, use_dora=dora, init_lora_weights=False)
    model.add_adapter(config, adapter_name="mine")


def kohya_names(pipe, family):
    """The LoRA of a pipeline as a run holds it."""
    tensors = {}
    for attribute, prefix in family.lora_prefixes.items():
        for name, module in getattr(pipe, attribute).named_modules():
            if not hasattr(module, "lora_A") or "mine" not in module.lora_A:
                continue
            key = f"{prefix}_{name.replace('.', '_')}"
            tensors[f"{key}.lora_down.weight"] = module.lora_A["mine"].weight
            tensors[f"{key}.lora_up.weight"] = module.lora_B["mine"].weight
            tensors[f"{key}.alpha"] = torch.tensor(2.0)
            if module.lora_magnitude_vector:
                tensors[f"{key}.dora_scale"] = module.lora_magnitude_vector["mine"].weight
    return settled({name: to_raw(tensor) for name, tensor in tensors.items()})


def trained(family, *, dora=False):
    """A pipeline with a random LoRA, its image, its tensors, and the same pipeline without the LoRA."""
    torch.manual_seed(5)
    pipe = BUILD[family]()
    add(pipe.unet, UNET, dora=dora)
    for name in families()[family].lora_prefixes:
        if name != "unet":
            add(getattr(pipe, name), TEXT, dora=dora)
    tensors = kohya_names(pipe, families()[family])
    return image(pipe), tensors, BUILD[family]()


def image(pipe):
    pipe.set_progress_bar_config(disable=True)
    draw = torch.Generator().manual_seed(0)
    return torch.from_numpy(pipe("a red ring", num_inference_steps=2, generator=draw, output_type="np").images)


def loaded(pipe, tensors, path):
    write(path, tensors, {"format": "pt"})
    pipe.load_lora_weights(str(path.parent), weight_name=path.name, local_files_only=True)
    return image(pipe)


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_the_plain_names_are_read_by_diffusers_with_their_alpha(tmp_path, family):
    before, tensors, fresh = trained(family)
    by_base_model = image(fresh)
    after = loaded(fresh, tensors, tmp_path / "lora.safetensors")
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)
    assert (by_base_model - before).abs().max() > 1e-2


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
@pytest.mark.parametrize("dora", [False, True])
def test_pefts_names_are_read_by_diffusers_and_keep_the_magnitudes_of_a_dora(tmp_path, family, dora):
    before, tensors, fresh = trained(family, dora=dora)
    made = peft(tensors, families()[family], fresh)
    torch.testing.assert_close(loaded(fresh, made, tmp_path / "lora.safetensors"), before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_attention_of_a_text_encoder_arrives_without_its_out_proj(tmp_path, family, monkeypatch):
    """diffusers would leave it out of kohya's layout without an error."""
    monkeypatch.setitem(globals(), "TEXT", ["q_proj", "fc1"])
    before, tensors, fresh = trained(family)
    made = for_program(tensors, programs()["diffusers"], families()[family], fresh)
    torch.testing.assert_close(loaded(fresh, made, tmp_path / "lora.safetensors"), before, rtol=0, atol=1e-5)


def test_diffusers_gets_a_dora_in_pefts_layout_and_kohya_a_warning():
    _, tensors, fresh = trained("sd2", dora=True)
    assert has_dora(tensors)
    diffusers, comfyui, kohya = (programs()[name] for name in ("diffusers", "comfyui", "kohya"))
    made = for_program(tensors, diffusers, families()["sd2"], fresh)
    assert made is not None
    assert all(name.startswith(("unet.", "text_encoder.text_model.")) for name in made)
    assert for_program(tensors, comfyui, families()["sd2"], fresh) is None
    assert ignored_parts(tensors, comfyui) == []
    assert "DoRA" in ignored_parts(tensors, kohya)[0]
    scales = {name: raw for name, raw in tensors.items() if name.endswith("dora_scale")}
    for name, raw in scales.items():
        up = tensors[name.replace("dora_scale", "lora_up.weight")]
        assert raw.shape == (up.shape[0], *[1] * (len(up.shape) - 1)), name


def test_kohya_gets_stabilitys_names_for_sdxl_and_diffusers_would_read_them_too(tmp_path):
    torch.manual_seed(5)
    pipe, family = real_blocks("sdxl"), families()["sdxl"]
    add(pipe.unet, UNET, dora=False)
    before, tensors = image(pipe), kohya_names(pipe, family)
    fresh = real_blocks("sdxl")
    made = for_program(tensors, programs()["kohya"], family, fresh)
    assert made is not None
    assert len(made) == len(tensors)
    assert all(name.startswith("lora_unet_") for name in made)
    blocks = {"_".join(name.split("_")[2:4]) for name in made}
    assert blocks == {"input_blocks", "middle_block", "output_blocks"}
    assert "lora_unet_input_blocks_7_1_transformer_blocks_9_attn2_to_q.lora_down.weight" in made
    torch.testing.assert_close(loaded(fresh, made, tmp_path / "lora.safetensors"), before, rtol=0, atol=1e-5)


def test_kohya_gets_other_families_unchanged():
    _, tensors, fresh = trained("sd2")
    assert for_program(tensors, programs()["kohya"], families()["sd2"], fresh) is None


def test_stabilitys_names_of_the_real_sdxl():
    """Places known from SDXL's published checkpoint."""
    shape = unet_shape(
        {"layers_per_block": 2, "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"]}
    )
    known = {
        "down_blocks.1.attentions.0.proj_in": "input_blocks.4.1.proj_in",
        "down_blocks.1.downsamplers.0.conv": "input_blocks.6.0.op",
        "down_blocks.2.resnets.1.conv1": "input_blocks.8.0.in_layers.2",
        "mid_block.resnets.1.norm2": "middle_block.2.out_layers.0",
        "up_blocks.0.upsamplers.0.conv": "output_blocks.2.2.conv",
        "up_blocks.2.resnets.2.conv_shortcut": "output_blocks.8.0.skip_connection",
    }
    assert {name: sgm_module(name, shape) for name in known} == known


def test_names_of_transformers_without_text_model_get_it():
    raw = to_raw(torch.zeros(2, 2))
    names = settled({"lora_te1_encoder_layers_0_mlp_fc1.lora_down.weight": raw})
    assert list(names) == ["lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"]


def test_a_layer_the_model_does_not_have_is_named(tmp_path):
    raw = to_raw(torch.zeros(2, 2))
    with pytest.raises(StageError, match="'nowhere' that the model does not have"):
        sgm({"lora_unet_nowhere.lora_down.weight": raw}, families()["sdxl"], tiny_sdxl())
    assert list(tmp_path.iterdir()) == []


def test_metadata_says_dynamic_where_ranks_differ(tmp_path):
    from projects import make_project, run_project

    recipe = make_project(tmp_path, train="lora = { rank = 2 }", export='targets = ["comfyui"]')
    run_project(recipe, tmp_path / "run")
    _, metadata = read(tmp_path / "run" / "exports" / "tiny.safetensors")
    assert metadata["ss_network_dim"] == "2"
    assert metadata["ss_network_alpha"] == "2.0"


def test_stabilitys_names_of_the_real_sd1():
    """diffusers reads either place, so no round trip tells: a block without attention has the upsampler second."""
    kinds = ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"]
    shape = unet_shape({"layers_per_block": 2, "up_block_types": kinds})
    names = [sgm_module(f"up_blocks.{block}.upsamplers.0.conv", shape) for block in range(3)]
    assert names == ["output_blocks.2.1.conv", "output_blocks.5.2.conv", "output_blocks.8.2.conv"]
