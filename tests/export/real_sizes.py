"""Models in real sizes, with few blocks and without weights: as diffusers and transformers have them, and ComfyUI."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from pivotune.converters.families import families

FLUX = {"in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "context_in_dim": 4096, "hidden_size": 3072,
        "mlp_ratio": 4.0, "num_heads": 24, "depth": 1, "depth_single_blocks": 1, "axes_dim": [16, 56, 56],
        "theta": 10000, "patch_size": 2, "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": []}  # fmt: skip
FLUX2 = {**FLUX, "out_channels": 128, "vec_in_dim": None, "mlp_ratio": 3.0, "axes_dim": [32] * 4, "theta": 2000,
         "patch_size": 1, "qkv_bias": False, "global_modulation": True, "mlp_silu_act": True, "ops_bias": False,
         "txt_ids_dims": [3]}  # fmt: skip
HUNYUAN = {**FLUX, "patch_size": [1, 2, 2], "theta": 256, "byt5": False, "meanflow": False,
           "use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False}  # fmt: skip
CHROMA = {**FLUX, "in_channels": 64, "out_channels": 64, "in_dim": 64, "out_dim": 3072, "hidden_dim": 5120,
          "n_layers": 5}  # fmt: skip
del HUNYUAN["txt_ids_dims"], CHROMA["guidance_embed"]
NEXT = {"patch_size": 2, "in_channels": 16, "n_layers": 1, "qk_norm": True}
LUMINA = {**NEXT, "dim": 2304, "n_heads": 24, "n_kv_heads": 8, "ffn_dim_multiplier": 4.0, "cap_feat_dim": 2304,
          "axes_dims": [32] * 3, "axes_lens": [300, 512, 512]}  # fmt: skip
Z_IMAGE = {**NEXT, "dim": 3840, "n_heads": 30, "n_kv_heads": 30, "cap_feat_dim": 2560, "axes_dims": [32, 48, 48],
           "axes_lens": [1536, 512, 512], "ffn_dim_multiplier": 8.0 / 3.0, "z_image_modulation": True}  # fmt: skip
ANIMA = {"max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16, "out_channels": 16,
         "patch_spatial": 2, "patch_temporal": 1, "model_channels": 2048, "num_blocks": 1, "pos_emb_cls": "rope3d",
         "pos_emb_learnable": True, "use_adaln_lora": True, "adaln_lora_dim": 256, "image_model": "anima"}  # fmt: skip


class Transformer(NamedTuple):
    """The denoiser of a family: class and arguments in diffusers; in ComfyUI its base, module, class and arguments."""

    kind: str
    options: dict[str, Any]
    base: str
    module: str
    name: str
    config: dict[str, Any]

    def diffusers(self) -> torch.nn.Module:
        import diffusers

        with torch.device("meta"):
            return getattr(diffusers, self.kind)(**self.options)

    def comfyui(self) -> tuple[str, torch.nn.Module, dict[str, Any]]:
        """The name of its base, the model, and its configuration."""
        import comfy.ops

        build = getattr(import_module(f"comfy.ldm.{self.module}"), self.name)
        model = build(**self.config, device="meta", dtype=torch.float32, operations=comfy.ops.disable_weight_init)
        return self.base, model, self.config


TRANSFORMERS = {
    "sd3": Transformer(
        "SD3Transformer2DModel", {"num_layers": 2, "num_attention_heads": 24, "caption_projection_dim": 1536,
        "dual_attention_layers": (0,), "qk_norm": "rms_norm"}, "SD3", "modules.diffusionmodules.mmdit", "MMDiT",
        {"in_channels": 16, "depth": 24, "num_blocks": 2, "input_size": None, "adm_in_channels": 2048,
         "context_embedder_config": {"target": "torch.nn.Linear",
                                     "params": {"in_features": 4096, "out_features": 1536}},
         "qk_norm": "rms", "x_block_self_attn_layers": [0], "pos_embed_max_size": 96, "num_patches": 9216}),
    "flux": Transformer("FluxTransformer2DModel", {"num_layers": 1, "num_single_layers": 1, "guidance_embeds": True},
                        "Flux", "flux.model", "Flux", FLUX),
    "chroma": Transformer("ChromaTransformer2DModel", {"num_layers": 1, "num_single_layers": 1}, "Chroma",
                          "chroma.model", "Chroma", CHROMA),
    "pixart": Transformer("PixArtTransformer2DModel", {"num_layers": 1, "caption_channels": 4096}, "PixArt",
                          "pixart.pixartms", "PixArtMS", {"depth": 1, "micro_condition": False}),
    "z-image": Transformer("ZImageTransformer2DModel", {"n_layers": 1}, "Lumina2", "lumina.model", "NextDiT", Z_IMAGE),
    "lumina2": Transformer("Lumina2Transformer2DModel", {"num_layers": 1, "cap_feat_dim": 2304}, "Lumina2",
                           "lumina.model", "NextDiT", LUMINA),
    "flux2-klein-4b": Transformer(
        "Flux2Transformer2DModel", {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 24,
        "joint_attention_dim": 7680, "guidance_embeds": False}, "Flux2", "flux.model", "Flux",
        {**FLUX2, "context_in_dim": 7680, "guidance_embed": False}),
    "flux2-klein-9b": Transformer(
        "Flux2Transformer2DModel", {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 32,
        "joint_attention_dim": 12288, "guidance_embeds": False}, "Flux2", "flux.model", "Flux",
        {**FLUX2, "hidden_size": 4096, "num_heads": 32, "context_in_dim": 12288, "guidance_embed": False}),
    "flux2-dev": Transformer(
        "Flux2Transformer2DModel", {"num_layers": 1, "num_single_layers": 1}, "Flux2", "flux.model", "Flux",
        {**FLUX2, "hidden_size": 6144, "num_heads": 48, "context_in_dim": 15360}),
    "qwen-image": Transformer("QwenImageTransformer2DModel", {"num_layers": 1}, "QwenImage", "qwen_image.model",
                              "QwenImageTransformer2DModel", {"num_layers": 1}),
    "krea2": Transformer("Krea2Transformer2DModel", {"num_layers": 1}, "Krea2", "krea2.model", "SingleStreamDiT",
                         {"layers": 1}),
    "hidream": Transformer(
        "HiDreamImageTransformer2DModel", {"patch_size": 2, "in_channels": 16, "num_layers": 1, "num_single_layers": 1,
        "caption_channels": [4096, 4096], "llama_layers": [0, 1]}, "HiDream", "hidream.model",
        "HiDreamImageTransformer2DModel", {"patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 1,
        "num_single_layers": 1, "caption_channels": [4096, 4096], "llama_layers": [0, 1]}),
    "hunyuan-video": Transformer("HunyuanVideoTransformer3DModel", {"num_layers": 1, "num_single_layers": 1},
                                 "HunyuanVideo", "hunyuan_video.model", "HunyuanVideo", HUNYUAN),
    "anima": Transformer(
        "CosmosTransformer3DModel", {"num_layers": 1, "num_attention_heads": 16, "text_embed_dim": 1024,
        "rope_scale": (1.0, 4.0, 4.0), "extra_pos_embed_type": None}, "Anima", "anima.model", "Anima", ANIMA),
    "wan": Transformer("WanTransformer3DModel", {"num_layers": 1}, "WAN21", "wan.model", "WanModel",
                       {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 1}),
}  # fmt: skip


class Encoder(NamedTuple):
    """A text encoder: how transformers builds it, and ComfyUI's name, module, class and configuration of it."""

    build: Callable[[], torch.nn.Module]
    name: str
    module: str
    kind: str
    config: dict[str, Any]

    def comfyui(self) -> tuple[str, torch.nn.Module]:
        """ComfyUI's name of the encoder, and its model."""
        import comfy.ops

        build = getattr(import_module(f"comfy.{self.module}"), self.kind)
        return self.name, build(self.config, torch.float32, "meta", comfy.ops.disable_weight_init)


def _llm(kind: str, wrapped: str, **sizes: Any) -> Callable[[], torch.nn.Module]:
    """A language model of transformers with one layer; `wrapped` is what its layers' names begin with."""

    def build() -> torch.nn.Module:
        import transformers

        config = getattr(transformers, f"{kind}Config")(num_hidden_layers=1, **sizes)
        with torch.device("meta"):
            model = getattr(transformers, f"{kind}Model")(config)
        for level in reversed(wrapped.split()):
            outer = torch.nn.Module()
            outer.add_module(level, model)
            model = outer
        return model

    return build


def _t5(kind: str) -> Callable[[], torch.nn.Module]:
    def build() -> torch.nn.Module:
        import transformers

        config = getattr(transformers, f"{kind}Config")(
            d_model=4096, d_ff=10240, num_heads=64, d_kv=64, num_layers=1, feed_forward_proj="gated-gelu"
        )
        with torch.device("meta"):
            return getattr(transformers, f"{kind}EncoderModel")(config)

    return build


def _clip(width: int, projection: bool = False) -> Callable[[], torch.nn.Module]:
    def build() -> torch.nn.Module:
        import transformers

        config = transformers.CLIPTextConfig(hidden_size=width, intermediate_size=4 * width, num_hidden_layers=1)
        kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
        with torch.device("meta"):
            return kind(config)

    return build


def _sizes(width: int, inner: int, heads: int, kv: int, **more: Any) -> dict[str, Any]:
    return {"hidden_size": width, "intermediate_size": inner, "num_attention_heads": heads,
            "num_key_value_heads": kv, **more}  # fmt: skip


def _clip_config(width: int) -> dict[str, Any]:
    return {"num_hidden_layers": 1, "hidden_size": width, "num_attention_heads": 8, "intermediate_size": 4 * width,
            "hidden_act": "quick_gelu", "max_position_embeddings": 77, "vocab_size": 49408,
            "eos_token_id": 49407}  # fmt: skip


T5 = {"d_model": 4096, "d_ff": 10240, "num_heads": 64, "d_kv": 64, "num_layers": 1, "vocab_size": 32128,
      "dense_act_fn": "gelu_pytorch_tanh", "is_gated_act": True, "model_type": "t5"}  # fmt: skip
ONE = {"num_hidden_layers": 1}
LLAMA = "text_encoders.llama"
ENCODERS = {
    "clip_l": Encoder(_clip(768), "clip_l", "clip_model", "CLIPTextModel", _clip_config(768)),
    "clip_g": Encoder(_clip(1280, True), "clip_g", "clip_model", "CLIPTextModel", _clip_config(1280)),
    "t5": Encoder(_t5("T5"), "t5xxl", "text_encoders.t5", "T5", T5),
    "umt5xxl": Encoder(_t5("UMT5"), "umt5xxl", "text_encoders.t5", "T5", {**T5, "model_type": "umt5"}),
    "llama": Encoder(_llm("Llama", "model", **_sizes(4096, 14336, 32, 8)), "llama", LLAMA, "Llama2", ONE),
    "gemma": Encoder(_llm("Gemma2", "", **_sizes(2304, 9216, 8, 4, head_dim=256)), "gemma2_2b", LLAMA, "Gemma2_2B",
                     ONE),
    "qwen25_7b": Encoder(_llm("Qwen2", "model language_model", **_sizes(3584, 18944, 28, 4)), "qwen25_7b", LLAMA,
                         "Qwen25_7BVLI", ONE),
    "qwen3_06b": Encoder(_llm("Qwen3", "", **_sizes(1024, 3072, 16, 8, head_dim=128)), "qwen3_06b", LLAMA,
                         "Qwen3_06B", ONE),
    "qwen3_4b": Encoder(_llm("Qwen3", "model", **_sizes(2560, 9728, 32, 8, head_dim=128)), "qwen3_4b", LLAMA,
                        "Qwen3_4B", ONE),
    "qwen3_8b": Encoder(_llm("Qwen3", "model", **_sizes(4096, 12288, 32, 8, head_dim=128)), "qwen3_8b", LLAMA,
                        "Qwen3_8B", ONE),
    "qwen3vl_4b": Encoder(_llm("Qwen3", "language_model", **_sizes(2560, 9728, 32, 8, head_dim=128)), "qwen3vl_4b",
                          LLAMA, "Qwen3_4B", ONE),
    "mistral3_24b": Encoder(_llm("Mistral", "model language_model", **_sizes(5120, 32768, 32, 8, head_dim=128)),
                            "mistral3_24b", LLAMA, "Mistral3Small24B", ONE),
}  # fmt: skip


def pipeline(name: str) -> SimpleNamespace:
    """The parts of a family's pipeline that can have a LoRA."""
    family = families()[name]
    encoders = {encoder.module: ENCODERS[encoder.key].build() for encoder in family.encoders}
    return SimpleNamespace(transformer=TRANSFORMERS[name].diffusers(), **encoders)
