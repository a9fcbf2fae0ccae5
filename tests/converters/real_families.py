"""LoRA files of the families with a transformer for real_programs.py: names and shapes of real modules."""

from __future__ import annotations

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
    block = {f"blocks.0.{kind}_attn.{part}": (5120, 5120) for kind in ("self", "cross") for part in "qkvo"}
    block |= {"blocks.0.ffn.0": (13824, 5120), "blocks.0.ffn.2": (5120, 13824)}
    found["wan kohya whole block"] = ("wan", _lora("lora_unet_", _flat(block), KOHYA, alpha=True))
    return found


def _flat(modules: dict) -> dict:
    return {name.replace(".", "_"): shape for name, shape in modules.items()}


def _lora(prefix: str, modules: dict, parts: tuple[str, str], alpha: bool = False) -> dict:
    found: dict = {}
    for name, (outputs, inputs) in modules.items():
        found |= {f"{prefix}{name}.{parts[0]}": (4, inputs), f"{prefix}{name}.{parts[1]}": (outputs, 4)}
        if alpha:
            found[f"{prefix}{name}.alpha"] = None
    return found
