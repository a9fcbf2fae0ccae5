"""Tiny random models built from configs, in the exact shape of the real ones: no downloads, seconds on a CPU."""

from __future__ import annotations

import os
import tempfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ChromaPipeline,
    ChromaTransformer2DModel,
    DDIMScheduler,
    DDPMWuerstchenScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableCascadeDecoderPipeline,
    StableCascadePriorPipeline,
    StableCascadeUNet,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from pivotune.pipeline.effnet import CONFIG, EfficientNetEncoder, torchvision_problem
from pivotune.recipes.micro.tokenizer import build_tokenizer


def text_config(tokenizer: Any, width: int, **changes: Any) -> CLIPTextConfig:
    options = {
        "vocab_size": len(tokenizer), "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2,
        "num_attention_heads": 4, "projection_dim": width, "max_position_embeddings": 77,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    return CLIPTextConfig(**options | changes)


def tiny_vae(**changes: Any) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=16,
        **changes,
    )  # fmt: skip


def tiny_flux_vae() -> AutoencoderKL:
    """A random VAE with the shift and scaling of FLUX.1's, which Chroma and Z-Image use too."""
    return tiny_vae(shift_factor=0.1159, scaling_factor=0.3611, use_quant_conv=False, use_post_quant_conv=False)


def tiny_unet(cross: int, **changes: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), block_out_channels=(8, 16), layers_per_block=1,
        cross_attention_dim=cross, attention_head_dim=2, norm_num_groups=4, **changes,
    )  # fmt: skip


def tiny_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip


def tiny_sd(seed: int = 0, width: int = 32, **text_changes: Any) -> StableDiffusionPipeline:
    """A random model in the shape of Stable Diffusion 1.x: one encoder, 16x16 images."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    return StableDiffusionPipeline(
        vae=tiny_vae(), text_encoder=CLIPTextModel(text_config(tokenizer, width, **text_changes)), tokenizer=tokenizer,
        unet=tiny_unet(width), scheduler=tiny_scheduler(), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def tiny_sdxl(seed: int = 0, **text_changes: Any) -> StableDiffusionXLPipeline:
    """A random model in the shape of SDXL: encoders of width 24 and 40, pooled text, time ids."""
    torch.manual_seed(seed)
    tokenizer, tokenizer_2 = build_tokenizer(), build_tokenizer()
    unet = tiny_unet(
        64, addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=40 + 6 * 8
    )
    return StableDiffusionXLPipeline(
        vae=tiny_vae(), text_encoder=CLIPTextModel(text_config(tokenizer, 24)), tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(text_config(tokenizer_2, 40, **text_changes)),
        tokenizer_2=tokenizer_2, unet=unet, scheduler=tiny_scheduler(),
    )  # fmt: skip


def tiny_sd2(seed: int = 0, **text_changes: Any) -> StableDiffusionPipeline:
    """A random model in the shape of Stable Diffusion 2.x: v-prediction, OpenCLIP's activation and padding."""
    pipe = tiny_sd(seed, hidden_act="gelu", **text_changes)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, prediction_type="v_prediction")
    return pipe


def real_blocks(family: str, seed: int = 0) -> Any:
    """A random model with all the blocks and layers of the real one, eight channels wide."""
    pipe = {"sd1": tiny_sd, "sd2": tiny_sd2, "sdxl": tiny_sdxl}[family](seed)
    torch.manual_seed(seed + 1)
    attention, plain = "CrossAttn{}Block2D", "{}Block2D"
    kinds = [plain, attention, attention] if family == "sdxl" else [attention, attention, attention, plain]
    blocks = {
        "down_block_types": tuple(kind.format("Down") for kind in kinds),
        "up_block_types": tuple(kind.format("Up") for kind in reversed(kinds)),
        "block_out_channels": (8,) * len(kinds), "layers_per_block": 2, "sample_size": 16, "norm_num_groups": 4,
        "attention_head_dim": 2, "use_linear_projection": family != "sd1",
        "transformer_layers_per_block": (1, 2, 10) if family == "sdxl" else 1,
    }  # fmt: skip
    given = {name: value for name, value in pipe.unet.config.items() if not name.startswith("_")}
    pipe.unet = UNet2DConditionModel.from_config(given | blocks)
    pipe.vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16), layers_per_block=2, latent_channels=4, norm_num_groups=4, sample_size=128,
    )  # fmt: skip
    return pipe


def tiny_t5_tokenizer() -> Any:
    """A T5 tokenizer of single letters, with the real one's special tokens and the space in front of words."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,<>-*"
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in letters)]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def tiny_t5(tokenizer: Any, width: int) -> T5EncoderModel:
    return T5EncoderModel(T5Config(
        vocab_size=len(tokenizer) + 12, d_model=width, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu",
    ))  # fmt: skip


def tiny_flux(seed: int = 0, *, guided: bool = True) -> FluxPipeline:
    """A random model in the shape of FLUX.1: CLIP of width 24, T5 of width 32, latents in 2x2 patches, dynamic
    shift.
    """
    torch.manual_seed(seed)
    tokenizer, tokenizer_2 = build_tokenizer(), tiny_t5_tokenizer()
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=24, axes_dims_rope=(4, 4, 8), guidance_embeds=guided,
    )  # fmt: skip
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=guided),
        vae=tiny_flux_vae(),
        text_encoder=CLIPTextModel(text_config(tokenizer, 24)), tokenizer=tokenizer,
        text_encoder_2=tiny_t5(tokenizer_2, 32), tokenizer_2=tokenizer_2, transformer=transformer,
    )  # fmt: skip


def tiny_chroma(seed: int = 0) -> ChromaPipeline:
    """A random model in the shape of Chroma: T5 of width 32, latents in 2x2 patches, a plain shift."""
    torch.manual_seed(seed)
    tokenizer = tiny_t5_tokenizer()
    transformer = ChromaTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=(4, 4, 8), approximator_hidden_dim=32, approximator_layers=1,
        approximator_num_channels=16,
    )  # fmt: skip
    return ChromaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.15),
        vae=tiny_flux_vae(),
        text_encoder=tiny_t5(tokenizer, 32), tokenizer=tokenizer, transformer=transformer,
    )  # fmt: skip


def tiny_pixart(seed: int = 0) -> PixArtSigmaPipeline:
    """A random model in the shape of PixArt-Sigma: T5 of width 32, an answer of noise and variance."""
    torch.manual_seed(seed)
    tokenizer = tiny_t5_tokenizer()
    transformer = PixArtTransformer2DModel(
        sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=3, caption_channels=32,
        in_channels=4, cross_attention_dim=24, out_channels=8, norm_type="ada_norm_single", attention_bias=True,
        activation_fn="gelu-approximate", num_embeds_ada_norm=1000, norm_elementwise_affine=False, norm_eps=1e-6,
        use_additional_conditions=False,
    )  # fmt: skip
    return PixArtSigmaPipeline(
        tokenizer=tokenizer, text_encoder=tiny_t5(tokenizer, 32), vae=tiny_vae(), transformer=transformer,
        scheduler=tiny_scheduler(),
    )  # fmt: skip


def tiny_qwen_tokenizer() -> Any:
    """A Qwen2 tokenizer of single bytes, with the chat markers and a template of one user turn."""
    markers = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    vocabulary = {letter: number for number, letter in enumerate((*bytes_to_unicode().values(), *markers))}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[], additional_special_tokens=list(markers[1:]))
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return tokenizer


def tiny_z_image(seed: int = 0) -> ZImagePipeline:
    """A random model in the shape of Z-Image: Qwen3 of width 16, captions of their own length, a shift of 3."""
    torch.manual_seed(seed)
    tokenizer = tiny_qwen_tokenizer()
    encoder = Qwen3Model(Qwen3Config(
        vocab_size=len(tokenizer) + 13, hidden_size=16, intermediate_size=16, num_hidden_layers=2, head_dim=8,
        num_attention_heads=2, num_key_value_heads=2,
    ))  # fmt: skip
    transformer = ZImageTransformer2DModel(
        all_patch_size=(2,), all_f_patch_size=(1,), in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2,
        n_kv_heads=2, cap_feat_dim=16, axes_dims=[8, 4, 4], axes_lens=[256, 32, 32],
    )  # fmt: skip
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(token)  # made without values
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=tiny_flux_vae(),
        text_encoder=encoder, tokenizer=tokenizer, transformer=transformer,
    )  # fmt: skip


def tiny_sd3(seed: int = 0, *, t5: bool = True, **changes: Any) -> StableDiffusion3Pipeline:
    """A random model in the shape of SD3: CLIP encoders of width 24 and 40, T5 of width 72 or none, flow matching."""
    torch.manual_seed(seed)
    tokenizer, tokenizer_2, tokenizer_3 = build_tokenizer(), build_tokenizer(), tiny_t5_tokenizer() if t5 else None
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=72, caption_projection_dim=16, pooled_projection_dim=64, out_channels=4,
        pos_embed_max_size=16, **changes,
    )  # fmt: skip
    vae = tiny_vae(shift_factor=0.06, scaling_factor=1.5)
    encoder = None
    if tokenizer_3 is not None:
        encoder = tiny_t5(tokenizer_3, 72)
    return StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae,
        text_encoder=CLIPTextModelWithProjection(text_config(tokenizer, 24)), tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(text_config(tokenizer_2, 40)), tokenizer_2=tokenizer_2,
        text_encoder_3=encoder, tokenizer_3=tokenizer_3,
    )  # fmt: skip


def tiny_cascade(seed: int = 0, *, width: int = 40) -> StableCascadePriorPipeline:
    """A random model in the shape of Stable Cascade's prior: CLIP of this width, two levels of the same size.

    Its `save_pretrained` writes the image encoder too, where torchvision is installed.
    """
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    prior = StableCascadeUNet(
        conditioning_dim=64, block_out_channels=(32, 32), num_attention_heads=(2, 2), down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1), switch_level=(False,), clip_image_in_channels=768, clip_seq=2,
        clip_text_in_channels=width, clip_text_pooled_in_channels=width, timestep_ratio_embedding_dim=16,
    )  # fmt: skip
    pipe = StableCascadePriorPipeline(
        tokenizer=tokenizer, text_encoder=CLIPTextModelWithProjection(text_config(tokenizer, width)), prior=prior,
        scheduler=DDPMWuerstchenScheduler(),
    )  # fmt: skip
    pipe.vae = SimpleNamespace(config=CONFIG)

    def save(folder: Any, **options: Any) -> None:
        StableCascadePriorPipeline.save_pretrained(pipe, folder, **options)
        if torchvision_problem() is None:
            file = Path(folder) / "effnet_encoder.safetensors"
            file.unlink(missing_ok=True)
            os.link(image_encoder_file(), file)

    pipe.save_pretrained = save
    return pipe


def tiny_cascade_decoder(width: int = 40) -> StableCascadeDecoderPipeline:
    """A random decoder of Stable Cascade; like that of the hub, diffusers cannot load its folder as a whole."""
    from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel

    torch.manual_seed(3)
    tokenizer, blocks = build_tokenizer(), ("SDCascadeResBlock", "SDCascadeTimestepBlock")
    decoder = StableCascadeUNet(
        in_channels=4, out_channels=4, conditioning_dim=64, block_out_channels=(16, 32), num_attention_heads=(-1, 1),
        down_num_layers_per_block=(1, 1), up_num_layers_per_block=(1, 1), patch_size=2, self_attn=(False, False),
        block_types_per_layer=(blocks, (*blocks, "SDCascadeAttnBlock")), clip_text_pooled_in_channels=width,
        effnet_in_channels=16, pixel_mapper_in_channels=3, timestep_conditioning_type=("sca",),
    )  # fmt: skip
    return StableCascadeDecoderPipeline(
        decoder=decoder, tokenizer=tokenizer, text_encoder=CLIPTextModelWithProjection(text_config(tokenizer, width)),
        scheduler=DDPMWuerstchenScheduler(),
        vqgan=PaellaVQModel(bottleneck_blocks=1, embed_dim=16, latent_channels=4, num_vq_embeddings=4),
    )  # fmt: skip


@cache
def image_encoder_file() -> Path:
    """A random image encoder of Stable Cascade, with the statistics of its norms measured on colours with noise."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    encoder = EfficientNetEncoder().train().requires_grad_(False)
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    colours = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * 3)
    noise = torch.randn(len(colours), 3, 128, 128) * torch.linspace(0.01, 0.8, len(colours)).reshape(-1, 1, 1, 1)
    encoder.encode(colours.reshape(-1, 3, 1, 1) + noise)
    folder = Path(tempfile.mkdtemp())
    save_file(encoder.state_dict(), str(folder / "effnet.safetensors"))
    return folder / "effnet.safetensors"
