"""ComfyUI's own transformers without weights, for the names of their modules; see real_loaders.py."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace

import torch

# Family to module, class, arguments, and the class of comfy.model_base that the table of names asks for
FLUX = {"in_channels": 64, "out_channels": 64, "vec_in_dim": 768, "context_in_dim": 4096, "hidden_size": 3072,
        "mlp_ratio": 4.0, "num_heads": 24, "depth": 1, "depth_single_blocks": 1, "axes_dim": [16, 56, 56],
        "theta": 10000, "patch_size": 2, "qkv_bias": True}  # fmt: skip
BODIES = {
    "sd3": ("modules.diffusionmodules.mmdit", "MMDiT", {
        "depth": 2, "num_blocks": 2, "adm_in_channels": 2048, "context_embedder_config": {
            "target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 128}}}, "SD3"),
    "chroma": ("chroma.model", "Chroma", {**{key: value for key, value in FLUX.items() if key != "vec_in_dim"},
               "in_dim": 64, "out_dim": 3072, "hidden_dim": 5120, "n_layers": 5}, "Chroma"),
    "pixart": ("pixart.pixartms", "PixArtMS", {"depth": 2}, "PixArt"),
    "qwen-image": ("qwen_image.model", "QwenImageTransformer2DModel", {"num_layers": 1}, "QwenImage"),
    "hidream": ("hidream.model", "HiDreamImageTransformer2DModel", {
        "patch_size": 2, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "caption_channels": [4096, 4096],
        "llama_layers": [0, 1]}, "HiDream"),
    "hunyuan-video": ("hunyuan_video.model", "HunyuanVideo", {**FLUX, "in_channels": 16, "out_channels": 16,
                      "guidance_embed": True, "byt5": False, "meanflow": False, "theta": 256,
                      "patch_size": [1, 2, 2]}, "HunyuanVideo"),
    "wan": ("wan.model", "WanModel", {"num_layers": 1, "dim": 5120, "ffn_dim": 13824, "num_heads": 40}, "WAN21"),
}  # fmt: skip


def model(family: str):
    """A stand-in for a loaded model, with the names of the body's weights and its configuration."""
    import comfy.model_base
    import comfy.ops

    module, name, arguments, base = BODIES[family]
    kind = getattr(import_module(f"comfy.ldm.{module}"), name)
    device = "cpu" if family == "pixart" else "meta"  # PixArt computes with a tensor as it is made
    with torch.device(device):
        body = kind(**arguments, operations=comfy.ops.disable_weight_init, device=device, dtype=torch.float32)
    names = {f"diffusion_model.{key}": None for key in body.state_dict()}
    base = getattr(comfy.model_base, base)
    made = type("Fake", (base,), {"__init__": lambda self: None, "state_dict": lambda self: names})()
    object.__setattr__(made, "model_config", SimpleNamespace(unet_config=arguments))
    return made
