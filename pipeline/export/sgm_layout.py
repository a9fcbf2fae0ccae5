"""The parts of a model as Stability's own code lays them out: which of our tensors make up each of its tensors.

A tensor there is one of ours under another name, in another shape, or (OpenCLIP's attention) three behind each other.
Everything here is names and views: no weight is copied.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from ..errors import StageError
from .sgm_unet import sgm_module, unet_shape

Pieces = dict[str, tuple[Tensor, ...]]  # name there to the tensors that stand behind each other along dimension 0

VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
VAE_WORDS = {
    "conv_shortcut": "nin_shortcut", "conv_norm_out": "norm_out", "down_blocks": "down", "resnets": "block",
    "downsamplers.0": "downsample", "upsamplers.0": "upsample",
}  # fmt: skip
OPEN_CLIP = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}  # fmt: skip
OPEN_CLIP_ENDS = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "final_layer_norm.weight": "ln_final.weight", "final_layer_norm.bias": "ln_final.bias",
}  # fmt: skip


def unet(module: Any) -> Pieces:
    """A UNet2DConditionModel."""
    shape = unet_shape(module.config)
    pieces: Pieces = {}
    for name, tensor in module.state_dict().items():
        stem, _, kind = name.rpartition(".")
        pieces[f"{sgm_module(stem, shape)}.{kind}"] = (tensor,)
    return pieces


def vae(module: Any) -> Pieces:
    """An AutoencoderKL; there the attention's matrices are 1x1 convolutions."""
    levels = len(module.config.block_out_channels)
    pieces: Pieces = {}
    for name, tensor in module.state_dict().items():
        stem, _, kind = name.rpartition(".")
        matrix = ".attentions." in name and tensor.ndim == 2
        pieces[f"{_vae_module(stem, levels)}.{kind}"] = (tensor[:, :, None, None] if matrix else tensor,)
    return pieces


def _vae_module(name: str, levels: int) -> str:
    if found := re.fullmatch(r"(\w+)\.mid_block\.attentions\.0\.(.+)", name):
        return f"{found[1]}.mid.attn_1.{VAE_ATTENTION[found[2]]}"
    if found := re.fullmatch(r"(\w+\.)mid_block\.resnets\.(\d)(\..+)", name):
        name = f"{found[1]}mid.block_{int(found[2]) + 1}{found[3]}"
    elif found := re.fullmatch(r"decoder\.up_blocks\.(\d+)(\..+)", name):  # counted from the other end
        name = f"decoder.up.{levels - 1 - int(found[1])}{found[2]}"
    for ours, theirs in VAE_WORDS.items():
        name = name.replace(ours, theirs)
    return name


def clip(module: Any) -> Pieces:
    """A CLIP text encoder of OpenAI's, as transformers names it in its files (`text_model.…`)."""
    return {f"text_model.{name}": (tensor,) for name, tensor in _flat(module).items()}


def open_clip(module: Any) -> Pieces:
    """A CLIP text encoder of OpenCLIP's: query, key and value are one matrix, the projection stands transposed."""
    state = _flat(module)
    pieces: Pieces = {}
    for name, tensor in state.items():
        if name in OPEN_CLIP_ENDS:
            pieces[OPEN_CLIP_ENDS[name]] = (tensor,)
        elif name == "text_projection.weight":
            pieces["text_projection"] = (tensor.T,)
        elif found := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name):
            block, inner, kind = f"transformer.resblocks.{found[1]}", found[2], found[3]
            if inner in OPEN_CLIP:
                pieces[f"{block}.{OPEN_CLIP[inner]}.{kind}"] = (tensor,)
            elif inner == "self_attn.q_proj":
                parts = tuple(state[name.replace("q_proj", f"{one}_proj")] for one in "qkv")
                pieces[f"{block}.attn.in_proj_{kind}"] = parts
            elif inner not in ("self_attn.k_proj", "self_attn.v_proj"):
                raise StageError(f"the text encoder's {name} has no place in a checkpoint file")
        else:
            raise StageError(f"the text encoder's {name} has no place in a checkpoint file")
    return pieces


def _flat(module: Any) -> dict[str, Tensor]:
    """State of a text encoder without the level that some versions of transformers put in between."""
    return {name.removeprefix("text_model."): tensor for name, tensor in module.state_dict().items()}
