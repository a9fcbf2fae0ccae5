"""Tiny random models whose captions are encoded by a language model: no downloads, seconds on a CPU."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from diffusers import (
    AnimaAutoBlocks,
    AnimaTextConditioner,
    AutoencoderDC,
    AutoencoderKLFlux2,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    CosmosTransformer3DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    Krea2Pipeline,
    Krea2Transformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from tiny import text_config, tiny_flux_vae, tiny_qwen_tokenizer, tiny_t5, tiny_t5_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLModel,
    UMT5Config,
    UMT5EncoderModel,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from pivotune.recipes.micro.tokenizer import build_tokenizer

ROWS = 13  # more vectors than tokens, as the real encoders have
LAYERS = {"intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}


def tiny_gemma_tokenizer() -> Any:
    """A Gemma tokenizer of single letters."""
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;<>-*'\"()\n"
    names = ("<pad>", "<eos>", "<bos>", "<unk>", "▁", *letters)
    tokenizer = GemmaTokenizer(vocab={name: number for number, name in enumerate(names)}, merges=[])
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
    )
    return tokenizer


def tiny_llama_tokenizer(additional: list[str] | None = None) -> Any:
    """A Llama-3 tokenizer of single bytes, with a begin token and `additional` tokens."""
    names = (*bytes_to_unicode().values(), "<|begin_of_text|>", "<|eot_id|>", "<|end_of_text|>")
    inner = Tokenizer(models.BPE(vocab={name: number for number, name in enumerate(names)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", names.index("<|begin_of_text|>"))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>", pad_token="<|end_of_text|>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": additional}) if additional else None
    return tokenizer


def video_template() -> list[str]:
    """The text before HunyuanVideo's prompts in as many pieces as the real tokenizer has tokens for it.

    The pipeline cuts off 95 states, of which the first is that of the begin token.
    """
    text, wanted = DEFAULT_PROMPT_TEMPLATE["template"].partition("{}")[0], DEFAULT_PROMPT_TEMPLATE["crop_start"] - 1
    bounds = [round(number * len(text) / wanted) for number in range(wanted + 1)]
    return [text[start:end] for start, end in pairwise(bounds)]


def tiny_mistral_tokenizer() -> Any:
    """A tokenizer of single bytes with Mistral's turns, padded on the left."""
    names = (
        *bytes_to_unicode().values(),
        "<s>",
        "</s>",
        "<pad>",
        "[INST]",
        "[/INST]",
        "[SYSTEM_PROMPT]",
        "[/SYSTEM_PROMPT]",
    )
    inner = Tokenizer(models.BPE(vocab={name: number for number, name in enumerate(names)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>", padding_side="left",
        additional_special_tokens=list(names[-4:]),
    )  # fmt: skip
    tokenizer.chat_template = (
        "<s>{% for message in messages %}{% if message['role'] == 'system' %}[SYSTEM_PROMPT]"
        "{{ message['content'][0]['text'] }}[/SYSTEM_PROMPT]{% else %}[INST]{{ message['content'][0]['text'] }}[/INST]"
        "{% endif %}{% endfor %}"
    )
    return tokenizer


def tiny_flux2_vae() -> AutoencoderKLFlux2:
    """A random VAE in the shape of FLUX.2's: 4 channels, a batch norm over 2x2 patches with statistics."""
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=16,
    )  # fmt: skip
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    return vae


def _flux2_transformer(width: int, *, guided: bool) -> Flux2Transformer2DModel:
    return Flux2Transformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=width, timestep_guidance_channels=256, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=guided,
    )  # fmt: skip


def tiny_klein(seed: int = 0, *, layers: int = 28) -> Flux2KleinPipeline:
    """A random model in the shape of FLUX.2 klein: states of three of Qwen3's layers, each of width 16."""
    torch.manual_seed(seed)
    tokenizer = tiny_qwen_tokenizer()
    encoder = Qwen3ForCausalLM(Qwen3Config(
        vocab_size=len(tokenizer) + ROWS, hidden_size=16, num_hidden_layers=layers, tie_word_embeddings=True, **LAYERS
    ))  # fmt: skip
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True), vae=tiny_flux2_vae(),
        text_encoder=encoder, tokenizer=tokenizer, transformer=_flux2_transformer(48, guided=False),
    )  # fmt: skip


def tiny_flux2(seed: int = 0) -> Flux2Pipeline:
    """A random model in the shape of FLUX.2 dev: states of three of Mistral's layers, a guidance value."""
    torch.manual_seed(seed)
    tokenizer = tiny_mistral_tokenizer()
    text = {
        "model_type": "mistral", "vocab_size": len(tokenizer) + ROWS, "hidden_size": 16, "num_hidden_layers": 32,
        **LAYERS,
    }  # fmt: skip
    vision = {
        "model_type": "pixtral", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "head_dim": 8, "image_size": 16, "patch_size": 4,
    }  # fmt: skip
    encoder = Mistral3ForConditionalGeneration(
        Mistral3Config(text_config=text, vision_config=vision, image_token_index=10)
    )
    return Flux2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True), vae=tiny_flux2_vae(),
        text_encoder=encoder, tokenizer=tokenizer, transformer=_flux2_transformer(48, guided=True),
    )  # fmt: skip


def tiny_gemma(tokenizer: Any, layers: int, width: int = 8) -> Gemma2Model:
    return Gemma2Model(Gemma2Config(
        vocab_size=len(tokenizer) + ROWS, hidden_size=width, intermediate_size=16, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=2, head_dim=8, attn_implementation="eager",
    ))  # fmt: skip


def tiny_sana(seed: int = 0, *, width: int = 8) -> SanaPipeline:
    """A random model in the shape of Sana: Gemma of this width, a VAE without a distribution, DPM-Solver."""
    torch.manual_seed(seed)
    tokenizer = tiny_gemma_tokenizer()
    blocks, none = ("ResBlock",) * 5 + ("EfficientViTBlock",), ((),) * 5
    vae = AutoencoderDC(
        in_channels=3, latent_channels=4, attention_head_dim=2, encoder_block_types=blocks, decoder_block_types=blocks,
        encoder_block_out_channels=(4, 4, 4, 4, 4, 8), decoder_block_out_channels=(4, 4, 4, 4, 4, 8),
        encoder_qkv_multiscales=(*none, (5,)), decoder_qkv_multiscales=(*none, (5,)), encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6, downsample_block_type="conv", upsample_block_type="interpolate",
        decoder_norm_types="rms_norm", decoder_act_fns="silu", scaling_factor=0.41407,
    )  # fmt: skip
    transformer = SanaTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=4,
        num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=width,
        sample_size=16,
    )  # fmt: skip
    return SanaPipeline(
        tokenizer=tokenizer, text_encoder=tiny_gemma(tokenizer, 2, width), vae=vae, transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    )  # fmt: skip


def tiny_lumina2(seed: int = 0, *, width: int = 8) -> Lumina2Pipeline:
    """A random model in the shape of Lumina 2: the second last states of Gemma, of this width."""
    torch.manual_seed(seed)
    tokenizer = tiny_gemma_tokenizer()
    transformer = Lumina2Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, hidden_size=8, num_layers=2, num_refiner_layers=1,
        num_attention_heads=1, num_kv_heads=1, multiple_of=16, axes_dim_rope=(4, 2, 2), axes_lens=(300, 32, 32),
        cap_feat_dim=width,
    )  # fmt: skip
    pipe = Lumina2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0), vae=tiny_flux_vae(),
        text_encoder=tiny_gemma(tokenizer, 3, width), tokenizer=tokenizer, transformer=transformer,
    )  # fmt: skip
    pipe.vae_scale_factor = 2  # a constant of the pipeline
    return pipe


def tiny_qwen_vae() -> AutoencoderKLQwenImage:
    return AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 0.5, 2.0, 1.0],
    )  # fmt: skip


def tiny_qwen_image(seed: int = 0) -> QwenImagePipeline:
    """A random model in the shape of Qwen-Image: Qwen2.5-VL of width 16, latents of a video VAE in 2x2 patches."""
    torch.manual_seed(seed)
    tokenizer = tiny_qwen_tokenizer()
    text = {
        "vocab_size": len(tokenizer) + ROWS, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2,
        "rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": [1, 1, 2]},
    }  # fmt: skip
    vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    encoder = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))
    transformer = QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=3,
        joint_attention_dim=16, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    return QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, max_image_seq_len=8192, max_shift=0.9, shift_terminal=0.02
        ),
        vae=tiny_qwen_vae(), text_encoder=encoder, tokenizer=tokenizer, transformer=transformer,
    )  # fmt: skip


def tiny_anima(seed: int = 0, *, padding: bool = False) -> Any:
    """A random model in the shape of Anima: Qwen3 of width 16, whose states T5's tokens attend to; a modular pipeline.

    `padding`: the denoiser takes a padding mask, as the real one, and needs torchvision for it.
    """
    torch.manual_seed(seed)
    tokenizer, t5_tokenizer = tiny_qwen_tokenizer(), tiny_t5_tokenizer()
    encoder = Qwen3Model(Qwen3Config(vocab_size=len(tokenizer) + ROWS, hidden_size=16, num_hidden_layers=2, **LAYERS))
    conditioner = AnimaTextConditioner(
        source_dim=16, target_dim=16, model_dim=16, num_layers=2, num_attention_heads=2,
        target_vocab_size=len(t5_tokenizer) + 12, min_sequence_length=128,
    )  # fmt: skip
    transformer = CosmosTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2, mlp_ratio=2,
        text_embed_dim=16, adaln_lora_dim=4, max_size=(4, 128, 128), patch_size=(1, 2, 2), concat_padding_mask=padding,
        extra_pos_embed_type=None,
    )  # fmt: skip
    pipe = AnimaAutoBlocks().init_pipeline()
    pipe.update_components(
        text_encoder=encoder, tokenizer=tokenizer, t5_tokenizer=t5_tokenizer, text_conditioner=conditioner,
        transformer=transformer, vae=tiny_qwen_vae(), scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip
    own = pipe.save_pretrained  # it takes no paths but texts
    pipe.save_pretrained = lambda folder: own(str(folder), overwrite_modular_index=True)
    return pipe


def tiny_krea2(seed: int = 0) -> Krea2Pipeline:
    """A random model in the shape of Krea 2: three layers of Qwen3-VL, each of width 16."""
    torch.manual_seed(seed)
    tokenizer = tiny_qwen_tokenizer()
    text = {
        "vocab_size": len(tokenizer) + ROWS, "hidden_size": 16, "num_hidden_layers": 3,
        "rope_scaling": {"rope_type": "default", "mrope_section": [2, 1, 1]}, **LAYERS,
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16,
        "deepstack_visual_indexes": [0],
    }  # fmt: skip
    encoder = Qwen3VLModel(Qwen3VLConfig(text_config=text, vision_config=vision))
    transformer = Krea2Transformer2DModel(
        in_channels=16, num_layers=2, attention_head_dim=8, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=32, timestep_embed_dim=8, text_hidden_dim=16, num_text_layers=3, text_num_attention_heads=2,
        text_num_key_value_heads=1, text_intermediate_size=16, num_layerwise_text_blocks=1, num_refiner_text_blocks=1,
        axes_dims_rope=(4, 2, 2),
    )  # fmt: skip
    return Krea2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, max_image_seq_len=6400),
        vae=tiny_qwen_vae(), text_encoder=encoder, tokenizer=tokenizer, transformer=transformer,
        text_encoder_select_layers=(0, 1, 2),
    )  # fmt: skip


def tiny_hidream(seed: int = 0) -> HiDreamImagePipeline:
    """A random model in the shape of HiDream: CLIPs of width 24 and 40, T5 and Llama of width 32."""
    torch.manual_seed(seed)
    clip, clip_2, t5, llama = build_tokenizer(), build_tokenizer(), tiny_t5_tokenizer(), tiny_llama_tokenizer()
    clip.model_max_length = clip_2.model_max_length = 248
    transformer = HiDreamImageTransformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8,
        num_attention_heads=4, caption_channels=[32, 32], text_emb_dim=64, num_routed_experts=4,
        num_activated_experts=2, axes_dims_rope=(4, 2, 2), max_resolution=(32, 32), llama_layers=(0, 1),
    )  # fmt: skip
    encoders = [
        CLIPTextModelWithProjection(text_config(one, width, max_position_embeddings=248))
        for one, width in ((clip, 24), (clip_2, 40))
    ]
    return HiDreamImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=tiny_flux_vae(),
        text_encoder=encoders[0], tokenizer=clip, text_encoder_2=encoders[1], tokenizer_2=clip_2,
        text_encoder_3=tiny_t5(t5, 32), tokenizer_3=t5, text_encoder_4=LlamaForCausalLM(_llama(llama, 32, 2)),
        tokenizer_4=llama, transformer=transformer,
    )  # fmt: skip


def _llama(tokenizer: Any, width: int, layers: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer) + ROWS, hidden_size=width, intermediate_size=16, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=2, attn_implementation="eager",
    )  # fmt: skip


def tiny_hunyuan_video(seed: int = 0) -> HunyuanVideoPipeline:
    """A random model in the shape of HunyuanVideo: Llama of width 16, CLIP of width 24, a guidance value."""
    torch.manual_seed(seed)
    llama, clip = tiny_llama_tokenizer(video_template()), build_tokenizer()
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, patch_size=1, patch_size_t=1, guidance_embeds=True, text_embed_dim=16,
        pooled_projection_dim=24, rope_axes_dim=(2, 4, 4),
    )  # fmt: skip
    vae = AutoencoderKLHunyuanVideo(
        in_channels=3, out_channels=3, latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4, up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, act_fn="silu", norm_num_groups=4, scaling_factor=0.476986,
        spatial_compression_ratio=8, temporal_compression_ratio=4, mid_block_add_attention=True,
    )  # fmt: skip
    return HunyuanVideoPipeline(
        text_encoder=LlamaModel(_llama(llama, 16, 4)), tokenizer=llama, transformer=transformer, vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=CLIPTextModel(text_config(clip, 24)), tokenizer_2=clip,
    )  # fmt: skip


def tiny_wan(seed: int = 0, *, two: bool = False) -> WanPipeline:
    """A random model in the shape of Wan: UMT5 of width 32; Wan 2.2 has two denoisers."""
    torch.manual_seed(seed)
    tokenizer = tiny_t5_tokenizer()
    encoder = UMT5EncoderModel(UMT5Config(
        vocab_size=len(tokenizer) + ROWS, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4
    ))  # fmt: skip
    vae = AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    transformers = [
        WanTransformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16,
            text_dim=32, freq_dim=256, ffn_dim=32, num_layers=2, cross_attn_norm=True,
            qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
        )
        for _ in range(2)
    ]  # fmt: skip
    return WanPipeline(
        tokenizer=tokenizer, text_encoder=encoder, vae=vae, transformer=transformers[0],
        transformer_2=transformers[1] if two else None, boundary_ratio=0.875 if two else None,
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    )  # fmt: skip
