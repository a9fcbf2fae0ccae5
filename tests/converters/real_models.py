"""Models without weights, with the real names and shapes of modules, for real_loaders.py."""

from __future__ import annotations

import torch

DEPTHS = {"sd1": ([1, 1, 1, 1, 1, 1, 0, 0], [1] * 9 + [0] * 3, [1, 2, 4, 4], 1, [2, 2, 2, 2]),
          "sdxl": ([0, 0, 2, 2, 10, 10], [10] * 3 + [2] * 3 + [0] * 3, [1, 2, 4], 10, [2, 2, 2])}  # fmt: skip


def unet(family: str) -> torch.nn.Module:
    """The U-Net of a family in diffusers, without weights."""
    from diffusers import UNet2DConditionModel

    wide = family == "sdxl"
    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=64,
            cross_attention_dim=2048 if wide else 768,
            attention_head_dim=[5, 10, 20] if wide else 8,
            block_out_channels=(320, 640, 1280) if wide else (320, 640, 1280, 1280),
            down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * 2) if wide else
            (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
            up_block_types=(*["CrossAttnUpBlock2D"] * 2, "UpBlock2D") if wide else
            ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
            transformer_layers_per_block=[1, 2, 10] if wide else 1,
            use_linear_projection=wide,
        )  # fmt: skip


def clip() -> torch.nn.Module:
    """CLIP-L without weights; its modules as they were called before transformers 5.6."""
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        model = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12))
    if not hasattr(model, "text_model"):
        outer = torch.nn.Module()
        outer.text_model = model
        return outer
    return model


def t5() -> torch.nn.Module:
    """T5-XXL's encoder without weights, of one block."""
    from transformers import T5Config, T5EncoderModel

    with torch.device("meta"):
        return T5EncoderModel(
            T5Config(d_model=4096, num_layers=1, num_heads=64, d_ff=10240, vocab_size=8, feed_forward_proj="gated-gelu")
        )


def flux() -> torch.nn.Module:
    """FLUX.1's transformer without weights."""
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        return FluxTransformer2DModel(guidance_embeds=True)


def native_unet(family: str, utils: object) -> list[str]:
    """Names of a U-Net's weights as Stability calls them, by ComfyUI's own table."""
    return list(dict.fromkeys(utils.unet_to_diffusers(unet_config(family)).values()))


def unet_config(family: str) -> dict:
    down, up, mult, middle, blocks = DEPTHS[family]
    return {"num_res_blocks": blocks, "channel_mult": mult, "transformer_depth": down,
            "transformer_depth_output": up, "transformer_depth_middle": middle}  # fmt: skip


CLIP_NAMES = [f"{key}.transformer.text_model.encoder.layers.{layer}.{part}.weight"
              for key in ("clip_l", "clip_g") for layer in range(12)
              for part in ("mlp.fc1", "mlp.fc2", *(f"self_attn.{n}_proj" for n in ("q", "k", "v", "out")))]  # fmt: skip

# Family to diffusers' class of its transformer, and the arguments that make it small
TRANSFORMERS = {
    "sd3": ("SD3Transformer2DModel", {"num_layers": 1, "num_attention_heads": 24}),
    "chroma": ("ChromaTransformer2DModel", {"num_layers": 1, "num_single_layers": 1}),
    "qwen-image": ("QwenImageTransformer2DModel", {"num_layers": 1}),
    "hidream": ("HiDreamImageTransformer2DModel", {
        "patch_size": 2, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "caption_channels": [4096, 4096],
        "attention_head_dim": 128, "num_attention_heads": 20, "llama_layers": [0, 1]}),
    "hunyuan-video": ("HunyuanVideoTransformer3DModel", {"num_layers": 1, "num_single_layers": 1}),
    "wan": ("WanTransformer3DModel", {"num_layers": 1}),
    "z-image": ("ZImageTransformer2DModel", {"n_layers": 1, "n_refiner_layers": 1}),
    "sana": ("SanaTransformer2DModel", {"num_layers": 1}),
}  # fmt: skip
FLUX2 = {"num_layers": 1, "num_single_layers": 1}
# The same for families for which diffusers has no LoRA loader, or whose names real_loaders.py does not ask it for
OTHERS = {
    "pixart": ("PixArtTransformer2DModel", {"num_layers": 1, "caption_channels": 4096}),
    "flux2-klein-4b": ("Flux2Transformer2DModel", {**FLUX2, "num_attention_heads": 24, "joint_attention_dim": 7680}),
    "flux2-klein-9b": ("Flux2Transformer2DModel", {**FLUX2, "num_attention_heads": 32, "joint_attention_dim": 12288}),
    "flux2-dev": ("Flux2Transformer2DModel", FLUX2),
    "krea2": ("Krea2Transformer2DModel", {"num_layers": 1}),
    "anima": ("CosmosTransformer3DModel", {"num_layers": 1, "num_attention_heads": 16, "extra_pos_embed_type": None}),
    "lumina2": ("Lumina2Transformer2DModel", {"num_layers": 1, "num_refiner_layers": 1, "cap_feat_dim": 2304}),
    "cascade": ("StableCascadeUNet", {"clip_text_in_channels": 1280, "clip_image_in_channels": 768,
                "down_num_layers_per_block": [1, 1], "up_num_layers_per_block": [1, 1], "switch_level": [False]}),
}  # fmt: skip


def transformer(family: str) -> torch.nn.Module:
    """The transformer of a family in diffusers, without weights."""
    import diffusers

    if family == "flux":
        return flux()
    name, arguments = (TRANSFORMERS | OTHERS)[family]
    with torch.device("meta"):
        return getattr(diffusers, name)(**arguments)
