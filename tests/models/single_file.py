"""Tiny pipelines as single-file checkpoints in the layout of the original Stable Diffusion code.

Names are those of the published checkpoints: numbered blocks of the UNet under `model.diffusion_model`, the VAE under
`first_stage_model`, the text encoders under `cond_stage_model` (1.x) or `conditioner.embedders` (XL).
"""

from __future__ import annotations

import re
from typing import Any

import torch

State = dict[str, torch.Tensor]
RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}  # fmt: skip


def single_file(pipe: Any) -> State:
    """The whole pipeline as one dict of tensors."""
    state = {f"model.diffusion_model.{name}": t for name, t in unet_state(pipe.unet).items()}
    state |= {f"first_stage_model.{name}": t for name, t in vae_state(pipe.vae).items()}
    if hasattr(pipe, "text_encoder_2"):
        state |= {f"conditioner.embedders.0.transformer.{n}": t for n, t in clip_state(pipe.text_encoder).items()}
        state |= {f"conditioner.embedders.1.model.{n}": t for n, t in open_clip_state(pipe.text_encoder_2).items()}
    else:
        state |= {f"cond_stage_model.transformer.{n}": t for n, t in clip_state(pipe.text_encoder).items()}
    return {name: tensor.contiguous() for name, tensor in state.items()}


def _swapped(name: str, table: dict[str, str]) -> str:
    stem, dot, kind = name.rpartition(".")
    return table.get(stem, stem) + dot + kind


def unet_state(unet: Any) -> State:
    each = unet.config.layers_per_block + 1
    return {_unet_name(name, each, len(unet.config.block_out_channels)): t for name, t in unet.state_dict().items()}


def _unet_name(name: str, each: int, blocks: int) -> str:
    found = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", name)
    if found:
        side, block, kind, layer, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        if kind == "downsamplers":
            return f"input_blocks.{each * (block + 1)}.0.op.{rest.removeprefix('conv.')}"
        if kind == "upsamplers":  # behind the resnet, and behind the attention where the block has one
            return f"output_blocks.{each * block + each - 1}.{1 if _plain(block, blocks) else 2}.{rest}"
        number = 1 + each * block + layer if side == "down" else each * block + layer
        inner = f"0.{_swapped(rest, RESNET)}" if kind == "resnets" else f"1.{rest}"
        return f"{'input' if side == 'down' else 'output'}_blocks.{number}.{inner}"
    found = re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", name)
    if found:
        place = 2 * int(found[2]) if found[1] == "resnets" else 1
        return f"middle_block.{place}.{_swapped(found[3], RESNET) if found[1] == 'resnets' else found[3]}"
    return _swapped(name, UNET_ENDS)


def _plain(block: int, blocks: int) -> bool:
    """Only the last up block of the tiny UNets has no attention, and it has no upsampler either."""
    return block == blocks - 1


def vae_state(vae: Any) -> State:
    levels = len(vae.config.block_out_channels)
    return {_vae_name(n, levels): _conv(n, t) for n, t in vae.state_dict().items()}


def _conv(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Attention of the original VAE is made of 1x1 convolutions."""
    return tensor[:, :, None, None] if re.search(r"attentions\..*to_.*weight", name) else tensor


def _vae_name(name: str, levels: int) -> str:
    name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = re.sub(r"(encoder\.down)_blocks\.(\d)\.resnets", r"\1.\2.block", name)
    name = re.sub(r"(encoder\.down)_blocks\.(\d)\.downsamplers\.0", r"\1.\2.downsample", name)
    up = re.match(r"decoder\.up_blocks\.(\d)\.", name)
    if up:
        rest = name[up.end() :].replace("resnets", "block").replace("upsamplers.0", "upsample")
        return f"decoder.up.{levels - 1 - int(up[1])}.{rest}"
    found = re.fullmatch(r"(.*)mid_block\.attentions\.0\.(.+)", name)
    return f"{found[1]}mid.attn_1.{_swapped(found[2], VAE_ATTENTION)}" if found else name


def clip_state(encoder: Any) -> State:
    return {f"text_model.{name.removeprefix('text_model.')}": t for name, t in encoder.state_dict().items()}


def open_clip_state(encoder: Any) -> State:
    state = {name.removeprefix("text_model."): tensor for name, tensor in encoder.state_dict().items()}
    made = {
        "positional_embedding": state.pop("embeddings.position_embedding.weight"),
        "token_embedding.weight": state.pop("embeddings.token_embedding.weight"),
        "text_projection": state.pop("text_projection.weight").T,
        "ln_final.weight": state.pop("final_layer_norm.weight"),
        "ln_final.bias": state.pop("final_layer_norm.bias"),
    }
    layers = {name.removeprefix("encoder.layers."): tensor for name, tensor in state.items()}
    for name in [name for name in layers if ".q_proj." in name]:
        parts = [layers.pop(name.replace(".q_proj.", f".{kind}_proj.")) for kind in "qkv"]
        block, kind = name.split(".")[0], name.rpartition(".")[2]
        made[f"transformer.resblocks.{block}.attn.in_proj_{kind}"] = torch.cat(parts)
    for name, tensor in layers.items():
        block, _, rest = name.partition(".")
        made[f"transformer.resblocks.{block}.{_swapped(rest, OPEN_CLIP)}"] = tensor
    return made
