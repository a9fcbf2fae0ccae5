"""LoRA files of the families with a transformer for real_programs.py: names and shapes of real modules."""

from __future__ import annotations


def _flux2(width: int) -> tuple[dict, dict]:
    """Modules of a FLUX.2 of this width by diffusers' name and by the original name."""
    shapes = ((width, width), (9 * width, width), (width, 4 * width), (width, 3 * width))
    diffusers = ("transformer_blocks.0.attn.to_out.0", "single_transformer_blocks.0.attn.to_qkv_mlp_proj",
                 "single_transformer_blocks.0.attn.to_out", "transformer_blocks.0.ff.linear_out")  # fmt: skip
    native = ("double_blocks.0.img_attn.proj", "single_blocks.0.linear1", "single_blocks.0.linear2",
              "double_blocks.0.img_mlp.2")  # fmt: skip
    return dict(zip(diffusers, shapes, strict=True)), dict(zip(native, shapes, strict=True))


FLUX = {
    "transformer_blocks.0.attn.to_out.0": (3072, 3072),
    "single_transformer_blocks.0.proj_out": (3072, 15360),
    "transformer_blocks.0.ff.net.2": (3072, 12288),
}
FLUX_NATIVE = {
    "double_blocks.0.img_attn.proj": (3072, 3072),
    "single_blocks.0.linear2": (3072, 15360),
    "double_blocks.0.img_mlp.2": (3072, 12288),
}
FLUX2 = {"flux2-klein-4b": _flux2(3072), "flux2-klein-9b": _flux2(4096), "flux2-dev": _flux2(6144)}
# Family to modules by diffusers' name, and the same or others by the name of the original code: (outputs, inputs)
DIFFUSERS = {
    "sd3": {"transformer_blocks.0.attn.to_q": (1536, 1536), "transformer_blocks.0.attn.to_out.0": (1536, 1536),
            "transformer_blocks.0.attn.add_q_proj": (1536, 1536), "transformer_blocks.0.ff.net.2": (1536, 6144)},
    "chroma": {"transformer_blocks.0.attn.to_out.0": (3072, 3072),
               "single_transformer_blocks.0.proj_out": (3072, 15360),
               "transformer_blocks.0.ff.net.2": (3072, 12288)},
    "pixart": {"transformer_blocks.0.attn1.to_out.0": (1152, 1152), "transformer_blocks.0.attn2.to_q": (1152, 1152),
               "transformer_blocks.0.ff.net.2": (1152, 4608)},
    "qwen-image": {"transformer_blocks.0.attn.to_q": (3072, 3072), "transformer_blocks.0.attn.to_out.0": (3072, 3072),
                   "transformer_blocks.0.img_mlp.net.2": (3072, 12288)},
    "hidream": {"double_stream_blocks.0.block.attn1.to_q": (2560, 2560),
                "single_stream_blocks.0.block.attn1.to_out": (2560, 2560)},
    "hunyuan-video": {"transformer_blocks.0.attn.to_out.0": (3072, 3072),
                      "single_transformer_blocks.0.proj_out": (3072, 15360)},
    "wan": {"blocks.0.attn1.to_q": (5120, 5120), "blocks.0.attn2.to_k": (5120, 5120),
            "blocks.0.ffn.net.2": (5120, 13824)},
    "z-image": {"layers.0.attention.to_out.0": (3840, 3840), "layers.0.feed_forward.w2": (3840, 10240),
                "layers.0.attention.to_q": (3840, 3840)},
    "sana": {"transformer_blocks.0.attn1.to_q": (2240, 2240), "transformer_blocks.0.attn2.to_k": (2240, 2240)},
    "krea2": {"transformer_blocks.0.attn.to_q": (6144, 6144), "transformer_blocks.0.attn.to_out.0": (6144, 6144),
              "transformer_blocks.0.ff.down": (6144, 16384)},
    "anima": {"transformer_blocks.0.attn1.to_q": (2048, 2048), "transformer_blocks.0.attn2.to_k": (2048, 1024),
              "transformer_blocks.0.ff.net.2": (2048, 8192)},
    "lumina2": {"layers.0.attn.to_out.0": (2304, 2304), "layers.0.feed_forward.linear_2": (2304, 9216)},
    **{family: diffusers for family, (diffusers, _) in FLUX2.items()},
}  # fmt: skip
NATIVE = {
    "sd3": {"joint_blocks.0.x_block.attn.proj": (1536, 1536), "joint_blocks.0.x_block.mlp.fc2": (1536, 6144)},
    "chroma": {"double_blocks.0.img_attn.proj": (3072, 3072), "single_blocks.0.linear2": (3072, 15360)},
    "pixart": {"blocks.0.attn.proj": (1152, 1152), "blocks.0.mlp.fc2": (1152, 4608)},
    "qwen-image": DIFFUSERS["qwen-image"],
    "hidream": DIFFUSERS["hidream"],
    "hunyuan-video": {"double_blocks.0.img_attn.proj": (3072, 3072), "single_blocks.0.linear2": (3072, 15360)},
    "wan": {"blocks.0.self_attn.q": (5120, 5120), "blocks.0.cross_attn.k": (5120, 5120),
            "blocks.0.ffn.2": (5120, 13824)},
    "z-image": {"layers.0.attention.out": (3840, 3840), "layers.0.feed_forward.w2": (3840, 10240)},
    "sana": {},
    "krea2": {"blocks.0.attn.wq": (6144, 6144), "blocks.0.attn.wo": (6144, 6144), "blocks.0.mlp.down": (6144, 16384)},
    "anima": {"blocks.0.self_attn.q_proj": (2048, 2048), "blocks.0.cross_attn.k_proj": (2048, 1024),
              "blocks.0.mlp.layer2": (2048, 8192)},
    "lumina2": {"layers.0.attention.out": (2304, 2304), "layers.0.feed_forward.w2": (2304, 9216)},
    **{family: native for family, (_, native) in FLUX2.items()},
}  # fmt: skip
# Layers of the original code that are several in diffusers
FUSED = {
    "flux": {"double_blocks.0.img_attn.qkv": (9216, 3072), "single_blocks.0.linear1": (21504, 3072),
             "double_blocks.0.img_attn.proj": (3072, 3072)},
    "sd3": {"joint_blocks.0.x_block.attn.qkv": (4608, 1536), "joint_blocks.0.x_block.attn.proj": (1536, 1536)},
    "chroma": {"double_blocks.0.img_attn.qkv": (9216, 3072), "single_blocks.0.linear1": (21504, 3072)},
    "pixart": {"blocks.0.attn.qkv": (3456, 1152), "blocks.0.cross_attn.kv_linear": (2304, 1152)},
    "hunyuan-video": {"double_blocks.0.img_attn.qkv": (9216, 3072), "single_blocks.0.linear1": (21504, 3072)},
    "z-image": {"layers.0.attention.qkv": (11520, 3840), "layers.0.feed_forward.w2": (3840, 10240)},
    "flux2-klein-9b": {"double_blocks.0.img_attn.qkv": (12288, 4096), "double_blocks.0.img_attn.proj": (4096, 4096)},
}  # fmt: skip
KOHYA, PEFT = ("lora_down.weight", "lora_up.weight"), ("lora_A.weight", "lora_B.weight")


def samples() -> dict[str, tuple[str, dict]]:
    """Sample to family, and names and shapes (None: a number)."""
    found = {}
    for family, modules in DIFFUSERS.items():
        native = NATIVE[family]
        layouts = {
            "peft": _lora("transformer.", modules, PEFT),
            "base model": _lora("base_model.model.", modules, PEFT),
            "bare": _lora("", modules, PEFT),
            "onetrainer": _lora("lora_transformer_", _flat(modules), KOHYA, alpha=True),
            "lycoris": _lora("lycoris_", _flat(modules), KOHYA, alpha=True),
            "kohya of diffusers": _lora("lora_unet_", _flat(modules), KOHYA, alpha=True),
        }
        if native:
            layouts |= {
                "kohya": _lora("lora_unet_", _flat(native), KOHYA, alpha=True),
                "kohya without alpha": _lora("lora_unet_", _flat(native), KOHYA),
                "comfyui": _lora("diffusion_model.", native, PEFT),
                "comfyui alpha": _lora("diffusion_model.", native, KOHYA, alpha=True),
                "original": _lora("", native, PEFT),
                "native of transformer": _lora("transformer.", native, PEFT),
                "comfyui of diffusers": _lora("diffusion_model.", modules, PEFT),
                "comfyui half kohya": _lora("diffusion_model.", native, KOHYA),
            }
        found |= {f"{family} {name}": (family, tensors) for name, tensors in layouts.items()}
    found |= _cascade() | _with_text() | _whole_flux() | _signed()
    found |= {f"{family} {name}": (family, tensors) for family, native in FUSED.items() for name, tensors in {
        "fused kohya": _lora("lora_unet_", _flat(native), KOHYA, alpha=True),
        "fused comfyui": _lora("diffusion_model.", native, PEFT),
        "fused original": _lora("", native, PEFT),
    }.items()}  # fmt: skip
    block = {f"blocks.0.{kind}_attn.{part}": (5120, 5120) for kind in ("self", "cross") for part in "qkvo"}
    block |= {"blocks.0.ffn.0": (13824, 5120), "blocks.0.ffn.2": (5120, 13824)}
    found["wan kohya whole block"] = ("wan", _lora("lora_unet_", _flat(block), KOHYA, alpha=True))
    return found


def _whole_flux() -> dict[str, tuple[str, dict]]:
    """LoRAs for all attention and feed-forward layers of a block of FLUX.1, by which InvokeAI knows some layouts."""
    attention = [f"transformer_blocks.0.attn.{name}" for name in (
        "to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "to_add_out")]  # fmt: skip
    attention += [f"single_transformer_blocks.0.attn.to_{one}" for one in "qkv"]
    modules = dict.fromkeys(attention, (3072, 3072)) | FLUX | {"single_transformer_blocks.0.proj_mlp": (12288, 3072)}
    layouts = {
        "peft": _lora("transformer.", modules, PEFT),
        "base model": _lora("base_model.model.", modules, PEFT),
        "bare": _lora("", modules, PEFT),
        "peft alpha": _lora("transformer.", modules, PEFT, alpha=True),
        "onetrainer": _lora("lora_transformer_", _flat(modules), KOHYA, alpha=True),
    }
    part = {name: shape for name, shape in modules.items() if not name.endswith("attn.to_k")}
    layouts["peft of a part"] = _lora("transformer.", part, PEFT)
    return {f"flux whole {name}": ("flux", tensors) for name, tensors in layouts.items()}


def _signed() -> dict[str, tuple[str, dict]]:
    """LoRAs with the layers by which InvokeAI knows a model that others share names with."""
    krea2 = DIFFUSERS["krea2"] | {"transformer_blocks.0.attn.to_gate": (6144, 6144),
                                  "text_fusion.refiner_blocks.0.attn.to_q": (2560, 2560)}  # fmt: skip
    native = NATIVE["krea2"] | {"blocks.0.attn.gate": (6144, 6144)}
    fusion = native | {"txtfusion.refiner_blocks.0.attn.wq": (2560, 2560)}
    narrow = NATIVE["flux2-klein-4b"] | {"double_blocks.0.img_mlp.0": (18432, 3072)}
    forward = DIFFUSERS["flux2-klein-4b"] | {"transformer_blocks.0.ff.linear_in": (18432, 3072)}
    block = {
        "attention.qkv": (3840, 2304),
        "attention.out": (2304, 2304),
        "feed_forward.w1": (9216, 2304),
        "feed_forward.w2": (2304, 9216),
        "feed_forward.w3": (9216, 2304),
        "adaLN_modulation.1": (9216, 1024),
    }
    lumina2 = {f"layers.0.{name}": shape for name, shape in block.items()}
    z_image = {name: shape for name, shape in DIFFUSERS["z-image"].items() if "to_out" not in name}
    found = {
        "krea2 signed peft": _lora("transformer.", krea2, PEFT),
        "krea2 signed bare": _lora("", krea2, PEFT),
        "krea2 signed kohya of diffusers": _lora("lora_unet_", _flat(krea2), KOHYA, alpha=True),
        "krea2 signed comfyui": _lora("diffusion_model.", native, PEFT),
        "krea2 signed comfyui alpha": _lora("diffusion_model.", fusion, KOHYA, alpha=True),
        "krea2 signed original": _lora("", fusion, PEFT),
        "krea2 signed kohya": _lora("lora_unet_", _flat(fusion), KOHYA, alpha=True),
        "flux2-klein-4b signed comfyui": _lora("diffusion_model.", narrow, PEFT),
        "flux2-klein-4b signed kohya": _lora("lora_unet_", _flat(narrow), KOHYA, alpha=True),
        "flux2-klein-4b signed peft": _lora("transformer.", forward, PEFT),
        "lumina2 signed fused comfyui": _lora("diffusion_model.", lumina2, PEFT),
        "z-image signed kohya": _lora("lora_unet__", _flat(z_image), KOHYA, alpha=True),
    }
    return {name: (name.partition(" ")[0], tensors) for name, tensors in found.items()}


def _with_text() -> dict[str, tuple[str, dict]]:
    """LoRAs with text encoders in them; "T5" is in the names of samples for programs that have a T5."""
    clip, t5 = {"encoder.layers.0.mlp.fc1": (3072, 768)}, {"encoder.block.0.layer.0.SelfAttention.q": (4096, 4096)}
    found = {}
    for family, number, other in (("flux", 2, 3), ("sd3", 3, ""), ("chroma", 1, ""), ("pixart", 1, "")):
        denoiser = _lora("lora_transformer_", _flat(DIFFUSERS.get(family, FLUX)), KOHYA, alpha=True)
        native = NATIVE.get(family, FLUX_NATIVE)
        own = "text_encoder" if number == 1 else f"text_encoder_{number}"
        names = {
            "kohya": _lora("lora_unet_", _flat(native), KOHYA) | _lora(f"lora_te{number}_", _flat(t5), KOHYA),
            "kohya other": _lora("lora_unet_", _flat(native), KOHYA) | _lora(f"lora_te{other}_", _flat(t5), KOHYA),
            "onetrainer": denoiser | _lora(f"lora_te{number}_", _flat(t5), KOHYA, alpha=True),
            "onetrainer other": denoiser | _lora(f"lora_te{other}_", _flat(t5), KOHYA, alpha=True),
            "comfyui": _lora("diffusion_model.", native, PEFT) | _lora("text_encoders.t5xxl.transformer.", t5, PEFT),
            "peft": _lora("transformer.", DIFFUSERS.get(family, FLUX), PEFT) | _lora(f"{own}.", t5, PEFT),
        }
        if number > 1:
            names["kohya and CLIP"] = names["kohya"] | _lora("lora_te1_text_model_", _flat(clip), KOHYA)
        found |= {f"{family} T5 {name}": (family, tensors) for name, tensors in names.items()}
    return found


def _cascade() -> dict[str, tuple[str, dict]]:
    modules = {"down_blocks.0.2.attention.to_q": (2048, 2048), "down_blocks.0.2.attention.to_out.0": (2048, 2048)}
    native = {"down_blocks.0.2.attention.attn.in_proj.0": (2048, 2048),
              "down_blocks.0.2.attention.attn.out_proj": (2048, 2048)}  # fmt: skip
    legacy = {f"down_blocks.0.2.attention.attn.{part}": (2048, 2048) for part in ("to_q", "out_proj")}
    text = {"encoder.layers.0.mlp.fc1": (5120, 1280)}
    layouts = {
        "onetrainer": _lora("lora_prior_unet_", _flat(legacy), KOHYA, alpha=True)
        | _lora("lora_prior_te_text_model_", _flat(text), KOHYA, alpha=True),
        "prior of diffusers": _lora("lora_prior_unet_", _flat(modules), KOHYA, alpha=True),
        "peft": _lora("prior.", modules, PEFT) | _lora("text_encoder.text_model.", text, PEFT),
        "kohya": _lora("lora_unet_", _flat(native), KOHYA, alpha=True),
        "kohya of diffusers": _lora("lora_unet_", _flat(modules), KOHYA, alpha=True),
        "original": _lora("", native, PEFT),
        "comfyui": _lora("diffusion_model.", native, PEFT),
    }
    return {f"cascade {name}": ("cascade", tensors) for name, tensors in layouts.items()}


def _flat(modules: dict) -> dict:
    return {name.replace(".", "_"): shape for name, shape in modules.items()}


def _lora(prefix: str, modules: dict, parts: tuple[str, str], alpha: bool = False) -> dict:
    found: dict = {}
    for name, (outputs, inputs) in modules.items():
        found |= {f"{prefix}{name}.{parts[0]}": (4, inputs), f"{prefix}{name}.{parts[1]}": (outputs, 4)}
        if alpha:
            found[f"{prefix}{name}.alpha"] = None
    return found
