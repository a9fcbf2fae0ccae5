"""What programs make of LoRAs of transformers as a whole: each row was seen in the program's own loader."""

import pytest
from lora_files import lora, peft

from pivotune.converters.families import all_families
from pivotune.converters.programs import programs
from pivotune.converters.programs.loras import applied, applies_encoder
from pivotune.converters.stored import Stored

T5 = "encoder_block_0_layer_0_SelfAttention_q"


@pytest.fixture
def judged(tensors, tmp_path):
    """judged(program, family, shapes) gives how many modules are applied, and why none."""

    def check(program, family, shapes, metadata=None):
        file = Stored(tmp_path / "x.safetensors", tensors(shapes), metadata or {})
        found = applied(programs()[program], file, all_families()[family])
        return found.applied, found.refusal

    return check


@pytest.mark.parametrize(
    ("family", "name", "applied_by"),
    [
        ("sana", "lora_transformer_transformer_blocks_0_attn1_to_q", {"onetrainer": 0}),
        ("flux2-klein-9b", "transformer.transformer_blocks.0.ff.linear_in", {"onetrainer": 1, "invokeai": 1}),
        ("flux2-klein-9b", "lora_unet_transformer_blocks_0_attn_to_q", {"onetrainer": 1, "invokeai": 0, "sdnext": 0}),
        ("krea2", "transformer.text_fusion.0.attn.to_q", {"onetrainer": 1, "invokeai": 1, "sdnext": 1, "comfyui": 1}),
        ("krea2", "transformer.blocks.0.attn.wq", {"onetrainer": 1, "comfyui": 0, "diffusers": 0}),
        ("anima", "diffusion_model.blocks.0.self_attn.q_proj", {"onetrainer": 1, "invokeai": 1, "diffusers": 1}),
        ("anima", "diffusion_model.transformer_blocks.0.attn1.to_q", {"onetrainer": 0, "comfyui": 0, "sdnext": 0}),
        ("z-image", "lora_unet_layers_0_attention_to_q", {"onetrainer": 1, "invokeai": 0, "sdnext": 1}),
        ("z-image", "lora_unet__layers_0_attention_to_q", {"invokeai": 1, "sdnext": 0, "diffusers": 0, "comfyui": 0}),
        ("hunyuan-video", "diffusion_model.double_blocks.0.img_attn.proj", {"onetrainer": 0, "comfyui": 1}),
        ("hunyuan-video", "lora_unet_double_blocks_0_img_attn_proj", {"onetrainer": 1}),
        ("z-image", "text_encoder.layers.0.self_attn.q_proj", {"onetrainer": 0, "sdnext": 0}),
        ("wan", "blocks.0.attn1.to_q", {"invokeai": 1}),
        ("sd3", "transformer.transformer_blocks.0.attn.to_q", {"invokeai": 0, "onetrainer": 1, "kohya": 0}),
        ("sd3", "lora_unet_joint_blocks_0_x_block_attn_qkv", {"kohya": 1, "onetrainer": 1}),
        ("lumina2", "lora_unet_layers_0_attention_qkv", {"kohya": 1}),
        ("lumina2", "lora_unet_layers_0_attn_to_q", {"kohya": 0, "comfyui": 0}),
        ("anima", "lora_unet_blocks_0_self_attn_q_proj", {"kohya": 1}),
    ],
)
def test_names_of_one_module_in_each_program(family, name, applied_by, judged):
    shapes = lora(name, 4096, alpha=(1,)) if "_" in name.partition(".")[0] and "." not in name else peft(name, 4096)
    assert {program: judged(program, family, shapes)[0] for program in applied_by} == applied_by


def test_onetrainer_takes_all_names_of_one_layout_or_none(judged):
    good, strange = "double_blocks.0.img_attn.proj", "strange.0.proj"
    for first, second in (
        (lora("lora_unet_double_blocks_0_img_attn_proj"), lora("lora_unet_strange_0_proj")),
        (peft(f"diffusion_model.{good}"), peft(f"diffusion_model.{strange}")),
    ):
        assert judged("onetrainer", "flux", first) == (1, "")
        count, why = judged("onetrainer", "flux", first | second)
        assert (count, "strange" in why) == (0, True)
    assert judged("onetrainer", "flux", peft(f"transformer.{good}") | peft(f"transformer.{strange}")) == (1, "")


@pytest.mark.parametrize(
    ("family", "denoiser", "able", "unable"),
    [
        ("flux", "lora_unet_double_blocks_0_img_attn_proj", "lora_te2_", "lora_te3_"),
        ("flux", "lora_transformer_transformer_blocks_0_attn_to_q", "lora_te2_", "lora_te3_"),
        ("chroma", "lora_transformer_transformer_blocks_0_attn_to_q", "lora_te_", "lora_te1_"),
        ("chroma", "lora_unet_double_blocks_0_img_attn_proj", "lora_te1_", "lora_te2_"),
    ],
)
def test_onetrainer_has_its_own_numbers_of_text_encoders(family, denoiser, able, unable, judged):
    assert judged("onetrainer", family, lora(denoiser) | lora(able + T5)) == (2, "")
    count, why = judged("onetrainer", family, lora(denoiser) | lora(unable + T5))
    assert (count, unable in why) == (0, True)


def test_onetrainer_trains_no_text_encoder_of_flux2_and_runs_no_wan(judged):
    block = peft("transformer.single_transformer_blocks.0.attn.to_out", 4096)
    text = peft("text_encoder.model.layers.0.self_attn.q_proj", 4096)
    assert judged("onetrainer", "flux2-klein-9b", block | text) == (1, "")
    assert applies_encoder(programs()["onetrainer"], all_families()["flux2-klein-9b"], "qwen3_8b") is False
    assert "wan" not in programs()["onetrainer"].runs


FIRST = ("single_transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.add_q_proj")
WHOLE = {key: shape for layer in (*FIRST, *(FIRST[1].replace("_q_", f"_{one}_") for one in "kv"))
         for key, shape in peft(f"transformer.{layer}", 3072).items()}  # fmt: skip


def test_invokeai_knows_flux_in_diffusers_names_by_two_layers_of_the_first_blocks(judged):
    assert judged("invokeai", "flux", WHOLE) == (4, "")
    less = {key: shape for key, shape in WHOLE.items() if FIRST[0] not in key}
    assert "no layout of FLUX" in judged("invokeai", "flux", less)[1]
    assert "stops at" in judged("invokeai", "flux", {k: s for k, s in WHOLE.items() if "add_k" not in k})[1]
    assert "stops at" in judged("invokeai", "flux", WHOLE | peft("transformer.strange.0.to_q"))[1]
    assert "no layout of FLUX" in judged("invokeai", "flux", WHOLE | {f"transformer.{FIRST[0]}.alpha": (1,)})[1]


@pytest.mark.parametrize(
    ("shapes", "flux", "klein"),
    [
        (peft("diffusion_model.double_blocks.0.img_attn.proj", 3072), True, False),
        (peft("diffusion_model.double_blocks.0.img_attn.proj", 4096), False, True),
        (lora("lora_unet_double_blocks_0_img_attn_proj", 4096), False, True),
        (peft("transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj", 3072), False, True),
        (peft("diffusion_model.double_blocks.0.img_attn.proj", 3072)
         | {"diffusion_model.double_blocks.0.img_mlp.0.lora_A.weight": (4, 3072),
            "diffusion_model.double_blocks.0.img_mlp.0.lora_B.weight": (18432, 4)}, False, True),
    ],
)  # fmt: skip
def test_invokeai_tells_flux1_and_flux2_by_widths(shapes, flux, klein, judged):
    assert (judged("invokeai", "flux", shapes)[0] > 0, judged("invokeai", "flux2-klein-4b", shapes)[0] > 0) == (
        flux, klein)  # fmt: skip


def test_invokeai_stops_at_alphas_beside_comfyuis_names_and_wants_pefts_endings_with_metadata(judged):
    name = "diffusion_model.double_blocks.0.img_attn.proj"
    assert judged("invokeai", "flux", lora(name, 3072)) == (1, "")
    assert "alpha" in judged("invokeai", "flux", lora(name, 3072, alpha=(1,)))[1]
    assert judged("invokeai", "flux", peft(name, 3072), {"ss_network_dim": "4"}) == (1, "")
    assert "no layout" in judged("invokeai", "flux", lora(name, 3072), {"ss_network_dim": "4"})[1]


def test_invokeai_knows_krea2_by_the_fusion_of_its_text_or_by_its_gates(judged):
    block = peft("diffusion_model.blocks.0.attn.wq", 6144)
    assert "finds no names" in judged("invokeai", "krea2", block)[1]
    assert judged("invokeai", "krea2", block | peft("diffusion_model.blocks.0.attn.gate", 6144)) == (2, "")
    assert judged("invokeai", "qwen-image", peft("transformer.transformer_blocks.0.attn.to_q", 3072)) == (1, "")
    fused = peft("transformer.transformer_blocks.0.attn.to_q", 6144) | peft("transformer.text_fusion.0.attn.to_q")
    assert "another kind of model" in judged("invokeai", "qwen-image", fused)[1]


def test_invokeai_skips_layers_that_stable_diffusion_does_not_have(judged):
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    assert judged("invokeai", "sd1", lora(key, 768) | lora("lora_unet_input_blocks_1_1_proj_in", 320)) == (1, "")


def test_diffusers_converts_lumina2_with_comfyuis_names_only_with_all_layers_of_a_block(judged):
    layers = ("attention.qkv", "attention.out", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3")
    shapes = {k: s for layer in layers for k, s in peft(f"diffusion_model.context_refiner.0.{layer}").items()}
    assert judged("diffusers", "lumina2", shapes) == (5, "")
    assert "is missing" in judged("diffusers", "lumina2", {k: s for k, s in shapes.items() if "w3" not in k})[1]
    main = {key.replace("context_refiner", "layers"): shape for key, shape in shapes.items()}
    assert "adaLN_modulation" in judged("diffusers", "lumina2", main)[1]


def test_diffusers_stops_at_a_name_of_krea2_that_it_has_no_rule_for(judged):
    shapes = peft("diffusion_model.blocks.0.attn.wq")
    assert judged("diffusers", "krea2", shapes) == (1, "")
    assert "stops at" in judged("diffusers", "krea2", shapes | peft("diffusion_model.blocks.0.mod.lin"))[1]


def test_invokeai_has_a_model_around_the_text_encoder_of_z_image(judged):
    """By reading: it loads a Qwen3ForCausalLM."""
    block = peft("transformer.layers.0.attention.to_q", 3840)
    assert judged("invokeai", "z-image", block | peft("text_encoder.layers.0.self_attn.q_proj", 2560)) == (1, "")
    assert judged("invokeai", "z-image", block | peft("text_encoder.model.layers.0.self_attn.q_proj", 2560)) == (2, "")
