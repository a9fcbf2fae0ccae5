"""Which names of modules programs look for in a LoRA of each family."""

import pytest
from lora_files import lora, peft

from pivotune.converters.families import all_families
from pivotune.converters.programs import programs
from pivotune.converters.programs.loras import applied
from pivotune.converters.stored import Stored

FLAT = "down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.mark.parametrize(
    ("family", "names", "applied_by"),
    [
        ("flux", ["diffusion_model.double_blocks.0.img_attn.proj"], {"forge": 1, "comfyui": 1, "diffusers": 0}),
        ("flux", ["lora_unet_transformer_blocks_0_attn_to_q"], {"forge": 0, "comfyui": 0, "forge-neo": 0}),
        ("flux", ["transformer.double_blocks.0.img_attn.proj"], {"forge": 0, "comfyui": 0, "diffusers": 0}),
        ("flux", ["diffusion_model.transformer_blocks.0.attn.to_q"], {"forge": 0, "comfyui": 0}),
        ("chroma", ["transformer.transformer_blocks.0.attn.to_q"], {"comfyui": 1, "diffusers": 1, "forge-neo": 1}),
        ("sd3", ["transformer.transformer_blocks.0.attn.to_q"], {"a1111": 1, "comfyui": 1, "diffusers": 1}),
        ("sd3", ["transformer.transformer_blocks.0.ff.net.2"], {"a1111": 0, "comfyui": 1, "diffusers": 1}),
        ("sd3", ["transformer.transformer_blocks.0.attn.add_q_proj"], {"a1111": 0, "diffusers": 1}),
        ("sd3", ["lora_unet_joint_blocks_0_x_block_attn_proj"], {"a1111": 1, "comfyui": 1, "diffusers": 0}),
        ("sd3", ["lora_unet_joint_blocks_0_x_block_mlp_fc2"], {"sdnext": 0}),
        ("chroma", ["base_model.model.transformer_blocks.0.attn.to_q"], {"sdnext": 1, "comfyui": 0}),
        ("chroma", ["double_blocks.0.img_attn.proj"], {"sdnext": 1, "comfyui": 0}),
        ("chroma", ["transformer.double_blocks.0.img_attn.proj"], {"sdnext": 0}),
        ("z-image", ["layers.0.attention.to_q"], {"sdnext": 1, "comfyui": 1, "forge-neo": 1}),
        ("z-image", ["layers.0.attention.out"], {"sdnext": 0, "comfyui": 0}),
        ("hunyuan-video", ["transformer.double_blocks.0.img_attn.proj"], {"comfyui": 0, "diffusers": 0}),
        ("hunyuan-video", ["transformer.double_blocks.0.img_attn_proj"], {"comfyui": 1}),
        ("wan", ["diffusion_model.blocks.0.self_attn.q"], {"comfyui": 1, "diffusers": 1, "forge-neo": 1}),
        ("wan", ["lora_unet_blocks_0_attn1_to_q"], {"comfyui": 0, "diffusers": 0}),
        ("wan", ["lora_unet_blocks_0_self_attn_q"], {"comfyui": 1, "diffusers": 0}),
        ("qwen-image", ["lora_unet_transformer_blocks_0_attn_to_q"], {"comfyui": 1, "diffusers": 1}),
        ("qwen-image", ["diffusion_model.transformer_blocks.0.attn.to_q"], {"comfyui": 1, "diffusers": 1}),
        ("z-image", ["diffusion_model.layers.0.attention.out"], {"comfyui": 1, "diffusers": 0}),
        ("z-image", ["transformer.layers.0.attention.out"], {"comfyui": 0, "diffusers": 0, "forge-neo": 0}),
        ("z-image", ["lora_unet_layers_0_attention_to_q"], {"comfyui": 0, "diffusers": 1}),
        ("hidream", ["diffusion_model.double_stream_blocks.0.block.attn1.to_q"], {"comfyui": 1, "diffusers": 1}),
    ],
)
def test_names_that_a_program_looks_for_in_a_lora_of_a_transformer(family, names, applied_by, tensors, tmp_path):
    made = tensors({key: shape for name in names for key, shape in peft(name).items()})
    file = Stored(tmp_path / "x.safetensors", made)
    found = {name: applied(programs()[name], file, all_families()[family]).applied for name in applied_by}
    assert found == applied_by


def test_diffusers_converts_some_names_only_with_matrices_of_one_spelling(tensors, tmp_path):
    def count(family, shapes):
        file = Stored(tmp_path / "x.safetensors", tensors(shapes))
        return applied(programs()["diffusers"], file, all_families()[family]).applied

    assert count("flux", lora("diffusion_model.double_blocks.0.img_attn.proj")) == 1
    assert count("z-image", lora("diffusion_model.layers.0.attention.out")) == 1
    assert count("hidream", lora("diffusion_model.double_stream_blocks.0.block.attn1.to_q")) == 0


def test_diffusers_converts_a_wan_lora_of_kohya_only_with_all_modules_of_a_block(tensors, tmp_path):
    names = [f"{kind}_attn_{part}" for kind in ("self", "cross") for part in "qkvo"] + ["ffn_0", "ffn_2"]
    shapes = {key: shape for name in names for key, shape in lora(f"lora_unet_blocks_0_{name}", alpha=(1,)).items()}
    whole = Stored(tmp_path / "x.safetensors", tensors(shapes))
    assert applied(programs()["diffusers"], whole, all_families()["wan"]).applied == 10
    del shapes["lora_unet_blocks_0_ffn_2.alpha"]
    part = applied(programs()["diffusers"], Stored(whole.path, tensors(shapes)), all_families()["wan"])
    assert (part.applied, "ffn_2.alpha" in part.refusal) == (0, True)


def test_diffusers_applies_nothing_of_a_kohya_lora_with_an_embedding_called_lora(tensors, tmp_path):
    shapes = lora(f"lora_unet_{FLAT}") | {"bundle_emb.my_lora.clip_l": (2, 768)}
    found = applied(programs()["diffusers"], Stored(tmp_path / "x.safetensors", tensors(shapes)), all_families()["sd1"])
    assert (found.applied, "embeddings" in found.refusal) == (0, True)
