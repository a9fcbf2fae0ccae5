"""What kind of LoRA a file holds: layout, modules, rank, and the family of its model, told from names and shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from .families import all_families
from .tensor import RawTensor

# Layout to how all (or, for the last ones, some) of its names look; the first that fits counts.
LAYOUTS = {
    "cloneofsimo": r"^(unet|text_encoder):\d+:",
    "lycoris": r"hada_w|lokr_w|oft_|boft|^lycoris_|glora",
    "onetrainer": r"^lora_transformer_",
    "kohya": r"^lora_",
    "comfyui": r"^diffusion_model\.|^text_encoders\.",
    "diffusers": r"^(unet|transformer|text_encoder(_\d)?|base_model|prior)\.|\.lora\.(up|down)\.|\.lora_[AB]\.",
}
# How names end of tensors whose second side is what a layer takes in; of the first ones the first side is the rank.
_DOWN = ("lora_down.weight", ".lora.down.weight", ".lora_A.weight", ".lora_A.default.weight", ":down")
_INPUTS = (*_DOWN, ".hada_w1_b", ".diff", ".lokr_w1")
_TAIL = r"\.(?=lora|alpha|hada|lokr|oft|diff|dora)|:(?=up|down|alpha)"
_CROSS = r"attn2[._](processor\.)?to_[kv]"


class LoraInfo(NamedTuple):
    """`ranks` are all that occur, smallest first; `families` those that the file may be for."""

    layout: str
    modules: int
    ranks: tuple[int, ...]
    families: tuple[str, ...]


def describe(tensors: Mapping[str, RawTensor], metadata: Mapping[str, str]) -> LoraInfo:
    """What the tensors of a LoRA (without those of embeddings) tell; metadata only where shapes leave it open."""
    names = "\n".join(tensors)
    layout = next((name for name, sign in LAYOUTS.items() if re.search(sign, names, re.M)), "other")
    ranks = {tensor.shape[0] for name, tensor in tensors.items() if tensor.shape and name.endswith(_DOWN)}
    modules = {re.split(_TAIL, name)[0] for name in tensors if not name.startswith("bundle_emb.")}
    return LoraInfo(layout, len(modules), tuple(sorted(ranks)), tuple(lora_families(tensors, metadata)))


def lora_families(tensors: Mapping[str, RawTensor], metadata: Mapping[str, str]) -> list[str]:
    """Families that a LoRA's blocks and the widths of its cross-attention leave, else those its metadata names."""
    stated, names, kinds = _stated(metadata), "\n".join(("", *tensors)), all_families().values()
    blocks = [family.name for family in kinds if family.signs.blocks and re.search(family.signs.blocks, names)]
    if blocks:
        return stated if stated and not _has_signs(stated) else blocks
    told = [name for name in tensors if name.endswith(_INPUTS)]
    cross = re.compile(_CROSS).search
    inputs = {_inputs(name, tensors) for name in told if name.startswith("unet:") or cross(name)}
    return [family.name for family in kinds if family.denoiser_kind and family.cross_attention in inputs] or stated


def _has_signs(names: list[str]) -> bool:
    """Whether blocks could tell these families; Chroma has those of FLUX and can be told by metadata alone."""
    return any(all_families()[name].signs.blocks for name in names)


def _inputs(name: str, tensors: Mapping[str, RawTensor]) -> int:
    """Width of what a cross-attention layer takes in, told by a tensor of LoRA, LoHa, LoKr or a full difference."""
    tensor = tensors[name]
    if len(tensor.shape) < 2:
        return 0
    if not name.endswith(".lokr_w1"):
        return tensor.shape[1]
    second = tensors.get(name.removesuffix("1") + "2") or tensors.get(name.removesuffix("1") + "2_b")
    return tensor.shape[1] * second.shape[1] if second is not None and len(second.shape) > 1 else 0


def _stated(metadata: Mapping[str, str]) -> list[str]:
    """Families that the metadata names, in ModelSpec's, kohya's or OneTrainer's way."""
    stated = re.sub(r"[^a-z0-9]+", "-", metadata.get("modelspec.architecture", "").lower())
    base = metadata.get("ss_base_model_version", "").lower() or ("sd_v2" if metadata.get("ss_v2") == "True" else "")
    kinds = all_families().values()
    found = [f.name for f in kinds if stated.startswith(f.signs.architectures)]
    return found or [f.name for f in kinds if base.startswith(f.signs.base_models)]
