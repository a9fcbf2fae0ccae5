"""InvokeAI's import of LoRAs: which base model it takes a file for (backend/model_manager/configs/lora.py).

It looks at names, and where FLUX.1 and FLUX.2 share those, at widths. A file that it takes for another base, or for
none, cannot be used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..families import Family
from ..stored import Stored
from ..tensor import RawTensor

_TEXT = r"lora_te1_text_model_encoder_layers_\d+_(mlp|self_attn)_\w|lora_te2_encoder_block_\d+_layer_\d+_[DS]\w+_\w"
# Layouts of FLUX, in the order in which they are looked for: what every name must look like
_KOHYA = re.compile(
    rf"lora_unet_\w+_blocks_\d+_((img|txt)_(attn|mlp|mod)|linear[12]|modulation)|lora_unet_final_layer_linear|{_TEXT}"
)
_ONETRAINER = re.compile(rf"lora_transformer_(single_)?transformer_blocks_\d+_\w+\.|{_TEXT}")
_XLABS = re.compile(r"double_blocks\.\d+\.processor\.(qkv|proj)_lora[12]\.(down|up)\.weight")
_PLAIN = ("lora_A.weight", "lora_B.weight", "lora.down.weight", "lora.up.weight")
_NATIVE = re.compile(r"diffusion_model\..+|base_model\.model\..+")
_FACTORS = (".lokr_w1", ".lokr_w2", ".lokr_w1_a", ".lokr_w1_b", ".lokr_w2_a", ".lokr_w2_b", ".lokr_t2",
            ".hada_w1_a", ".hada_w1_b", ".hada_w2_a", ".hada_w2_b", ".hada_t1", ".hada_t2")  # fmt: skip
_NATIVE_ENDS = (*_PLAIN[:2], *_FACTORS, ".alpha", ".dora_scale", ".diff")
_SPLIT = re.compile(r"transformer\.(double|single)_blocks\..+\.(qkv\.[012]|linear1\.[0123])\.", re.M)
# Modules by whose widths it tells FLUX.2 from FLUX.1, with those of FLUX.2
_WIDTHS = (
    (r"(transformer\.|base_model\.model\.)?context_embedder\.lora_A\.weight", {7680, 12288, 15360}),
    (r"(diffusion_model|base_model\.model)\..*txt_in.*lora_A\.weight", {7680, 12288, 15360}),
    (r"lora_unet_(txt_in|context_embedder)\.lora_down\.weight", {7680, 12288, 15360}),
    (r"(transformer\.|base_model\.model\.)?time_text_embed\.text_embedder\.linear_1\.lora_A\.weight",
     {2560, 4096, 5120}),
    (r"(diffusion_model|base_model\.model)\..*vector_in.*lora_A\.weight", {2560, 4096, 5120}),
)  # fmt: skip
_FLUX2 = (
    r"\n(transformer\.|base_model\.model\.)?(single_transformer_blocks\.0\.attn\.to_qkv_mlp_proj"
    r"|transformer_blocks\.0\.ff\.linear_in)\.lora_A\.weight\n"
)
_ATTENTION = re.compile(
    r"(?:diffusion_model|base_model\.model)\..*\.img_attn\.proj\.lora_A\.weight|lora_unet_\w*_img_attn_proj\.lora_down\.weight"
)
_FORWARD = re.compile(
    r"(?:diffusion_model|base_model\.model)\..*\.img_mlp\.0\.lora_B\.weight|lora_unet_\w*_img_mlp_0\.lora_up\.weight"
)
_NARROW, _FORWARD_OF_FLUX1 = 3072, 12288

_PREFIX = r"\n(diffusion_model|transformer|base_model\.model\.transformer)\."
_MATRICES = r"(lora_[AB]\.weight|lora_(down|up)\.weight|dora_scale)\n"
_KREA2 = r"text_fusion|txtfusion|time_mod_proj|\.attn\.wq\.(?s:.*)\.attn\.gate\.|\.attn\.gate\.(?s:.*)\.attn\.wq\."
_ANIMA_PARTS = r"(mlp[._]layer|adaln_modulation|(cross|self)_attn[._]([qkv]_proj|output_proj))"
_FLUX_PARTS = (
    r"\n(double_blocks|single_blocks|(transformer\.)?single_transformer_blocks)\."
    r"|\nlora_unet_((double|single)_blocks|single_transformer_blocks)_"
)
_WAN_PARTS = r"(attn[12]\.|ffn\.net\.|(self|cross)_attn\.[qkvo]\.|ffn\.\d+\.)"
# Family to what some name must look like, and what none may: where names alone tell models apart
_SIGNS = {
    "z-image": (
        r"\nlora_unet__(layers|context_refiner|noise_refiner)_\d+_(attention_to_[qkv]|feed_forward_w[123])"
        r"|\ndiffusion_model\.(layers|context_refiner|noise_refiner)\.|\n(base_model\.model\.)?transformer\.layers\.",
        r"(?!)",
    ),
    "qwen-image": (
        r"\n((transformer\.)?transformer_blocks\.|lora_unet_transformer_blocks_)",
        rf"\ndiffusion_model\.layers\.|{_KREA2}|{_FLUX_PARTS}",
    ),
    "krea2": (_KREA2, r"(?!)"),
    "anima": (rf"lora_unet_(llm_adapter_)?blocks_\d+_{_ANIMA_PARTS}|{_PREFIX}blocks\.\d+\.{_ANIMA_PARTS}", r"(?!)"),
    "wan": (
        rf"lora_unet_blocks_\d+_(attn[12]_(to_|norm_)|(self|cross)_attn_[qkvo][_.]|ffn_)|({_PREFIX}|\n)blocks\.\d+\.{_WAN_PARTS}",
        rf"blocks[._]\d+[._]{_ANIMA_PARTS}|[\n.]transformer_blocks\.\d|[\n._](double|single)_blocks[._]\d",
    ),
}


def not_imported(file: Stored, family: Family) -> str:
    """Why InvokeAI's import takes the file for no LoRA of this family, empty if it does; of transformers only."""
    if family.name in _SIGNS:
        wanted, excluded = _SIGNS[family.name]
        if not re.search(wanted, file.text):
            return f"its import finds no names by which it knows a LoRA for {family.title}"
        if re.search(excluded, file.text) or not re.search(rf"{_MATRICES}|lokr_w[12]\n", file.text):
            return "its import takes it for another kind of model"
        return ""
    if not _flux_layout(file):
        return "its import knows no layout of FLUX in which all tensors have such names"
    found = "FLUX.2" if _is_flux2(file) else "FLUX.1"
    return "" if family.title.startswith(found) else f"its import takes it for a LoRA for {found}"


def _flux_layout(file: Stored) -> bool:
    """Whether it knows the names as FLUX.1's or FLUX.2's, in one of seven layouts."""
    names = list(file.tensors)
    if any(all(map(layout.match, names)) for layout in (_KOHYA, _ONETRAINER, _XLABS)):
        return True
    if all(map(_SPLIT.match, names)):
        return True
    if all(name.endswith(_PLAIN) for name in names) and _diffusers(file):
        return True
    if any(name.startswith(("diffusion_model.double_blocks.", "diffusion_model.single_blocks.")) for name in names):
        if not file.metadata and not any(name.endswith(_FACTORS) for name in names):
            return True
    elif not re.search(r"\nbase_model\.model\.(double|single)_blocks\.", file.text):
        return False
    return all(_NATIVE.match(name) and name.endswith(_NATIVE_ENDS) for name in names)


def _diffusers(file: Stored) -> bool:
    """Whether there are the two layers of the first blocks by which it knows FLUX.1, or names of FLUX.2."""
    for prefix in ("transformer.", "base_model.model."):
        first = ("single_transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.add_q_proj")
        if all(f"{prefix}{layer}.lora_{one}.weight" in file.tensors for layer in first for one in "AB"):
            return True
    blocks = (
        r"\n(transformer\.|base_model\.model\.)?(single_transformer_blocks\..*to_qkv_mlp_proj|transformer_blocks\.)"
    )
    return bool(re.search(r"to_qkv_mlp_proj|ff(_context)?\.linear_in", file.text) and re.search(blocks, file.text))


def _is_flux2(file: Stored) -> bool:
    for pattern, widths in _WIDTHS:
        found = [name for name in file.tensors if re.fullmatch(pattern, name)]
        if found:
            return _inputs(file.tensors, found[0]) in widths
    if re.search(_FLUX2, file.text):
        return True
    attention = next(filter(_ATTENTION.fullmatch, file.tensors), None)
    if attention is None:
        return False
    if _inputs(file.tensors, attention) != _NARROW:
        return True
    forward = next(filter(_FORWARD.fullmatch, file.tensors), None)
    return forward is not None and file.tensors[forward].shape[0] != _FORWARD_OF_FLUX1


def _inputs(tensors: Mapping[str, RawTensor], name: str) -> int:
    shape = tensors[name].shape
    return shape[1] if len(shape) > 1 else 0
