"""Names of modules in checkpoint files; for the UNet those of Stability's code (`input_blocks`, `middle_block`, …).

Checkpoints of SD 1, SD 2 and SDXL use them for weights, kohya's scripts for the LoRA of an SDXL model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import StageError

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
ENDS = {
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
_LAYER = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)(?:\.(.+))?")
_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)(?:\.(.+))?")


@dataclass(frozen=True)
class UNetShape:
    """What the numbering depends on: the entries of each block, and which up blocks have attention."""

    each: int
    attentive: frozenset[int]


def unet_shape(config: Mapping[str, Any]) -> UNetShape:
    """The shape of a UNet2DConditionModel by its config. StageError for one that Stability's code cannot number."""
    layers = config["layers_per_block"]
    if not isinstance(layers, int):
        if len(set(layers)) > 1:
            raise StageError(f"a UNet with layers_per_block = {list(layers)} is not supported in a checkpoint file")
        layers = layers[0]
    attentive = {number for number, kind in enumerate(config["up_block_types"]) if "Attn" in kind}
    return UNetShape(layers + 1, frozenset(attentive))


def sgm_module(name: str, shape: UNetShape) -> str:
    """Stability's name of a module that diffusers calls `name`. StageError for one it has no name for."""
    if name in ENDS:
        return ENDS[name]
    if found := _LAYER.fullmatch(name):
        return _in_block(found[1], int(found[2]), found[3], int(found[4]), found[5], shape)
    if found := _MIDDLE.fullmatch(name):
        kind, number, rest = found[1], int(found[2]), found[3]
        place = 2 * number if kind == "resnets" else 2 * number + 1
        return _joined(f"middle_block.{place}", _inner(kind, rest))
    raise StageError(f"the UNet's {name} is not supported in a checkpoint file of this family")


def _in_block(side: str, block: int, kind: str, layer: int, rest: str | None, shape: UNetShape) -> str:
    last = shape.each * block + shape.each
    if kind == "downsamplers":  # an entry of its own after the block's layers
        return f"input_blocks.{last}.0.op"
    if kind == "upsamplers":  # after resnet and attention of the block's last layer
        return f"output_blocks.{last - 1}.{2 if block in shape.attentive else 1}.conv"
    number = shape.each * block + layer + (side == "down")
    inside = 0 if kind == "resnets" else 1
    return _joined(f"{'input' if side == 'down' else 'output'}_blocks.{number}.{inside}", _inner(kind, rest))


def _inner(kind: str, rest: str | None) -> str | None:
    return RESNET[rest] if kind == "resnets" and rest else rest


def _joined(name: str, rest: str | None) -> str:
    return f"{name}.{rest}" if rest else name


Pieces = dict[str, tuple[Tensor, ...]]  # name in the file to the tensors that are concatenated along dimension 0

VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
VAE_EMBEDDINGS = {
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
    """An AutoencoderKL, whose attention matrices are 1x1 convolutions in checkpoint files."""
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
    elif found := re.fullmatch(r"decoder\.up_blocks\.(\d+)(\..+)", name):  # counted from the end
        name = f"decoder.up.{levels - 1 - int(found[1])}{found[2]}"
    for ours, theirs in VAE_EMBEDDINGS.items():
        name = name.replace(ours, theirs)
    return name


def clip(module: Any) -> Pieces:
    """A CLIP text encoder of OpenAI's, as transformers names it in its files (`text_model.…`)."""
    return {f"text_model.{name}": (tensor,) for name, tensor in _flat(module).items()}


def open_clip(module: Any) -> Pieces:
    """A CLIP text encoder of OpenCLIP's: query, key and value are one matrix, the projection is transposed."""
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
                raise StageError(f"the text encoder's {name} is not supported in a checkpoint file")
        else:
            raise StageError(f"the text encoder's {name} is not supported in a checkpoint file")
    return pieces


def _flat(module: Any) -> dict[str, Tensor]:
    """State of a text encoder without the level that some versions of transformers add."""
    return {name.removeprefix("text_model."): tensor for name, tensor in module.state_dict().items()}


SD3_ENDS = {
    "pos_embed.proj": "x_embedder.proj", "context_embedder": "context_embedder", "proj_out": "final_layer.linear",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
}  # fmt: skip
INSIDE = {
    "attn.to_out.0": "x_block.attn.proj", "attn.to_add_out": "context_block.attn.proj",
    "attn.norm_q": "x_block.attn.ln_q", "attn.norm_k": "x_block.attn.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q", "attn.norm_added_k": "context_block.attn.ln_k",
    "attn2.to_out.0": "x_block.attn2.proj", "attn2.norm_q": "x_block.attn2.ln_q", "attn2.norm_k": "x_block.attn2.ln_k",
    "norm1.linear": "x_block.adaLN_modulation.1", "norm1_context.linear": "context_block.adaLN_modulation.1",
    "ff.net.0.proj": "x_block.mlp.fc1", "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1", "ff_context.net.2": "context_block.mlp.fc2",
}  # fmt: skip
# query, key and value are one matrix in the file; the query's name is used for it
QKV = {
    "attn.to_q": ("x_block.attn.qkv", "attn.to_k", "attn.to_v"),
    "attn.add_q_proj": ("context_block.attn.qkv", "attn.add_k_proj", "attn.add_v_proj"),
    "attn2.to_q": ("x_block.attn2.qkv", "attn2.to_k", "attn2.to_v"),
}  # fmt: skip
REST_OF_QKV = {name for _, *names in QKV.values() for name in names}


def joint_transformer(module: Any) -> Pieces:
    """An SD3Transformer2DModel."""
    state, last = module.state_dict(), len(module.transformer_blocks) - 1
    pieces: Pieces = {}
    for name, tensor in state.items():
        stem, _, kind = name.rpartition(".")
        if found := re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", stem):
            block, inner = int(found[1]), found[2]
            swapped = block == last and inner == "norm1_context.linear"
            pieces |= _in_joint_block(state, block, inner, kind, _swapped(tensor) if swapped else (tensor,))
        elif name == "pos_embed.pos_embed":
            pieces["pos_embed"] = (tensor,)
        elif stem == "norm_out.linear":
            pieces[f"final_layer.adaLN_modulation.1.{kind}"] = _swapped(tensor)
        elif stem in SD3_ENDS:
            pieces[f"{SD3_ENDS[stem]}.{kind}"] = (tensor,)
        else:
            raise StageError(f"the transformer's {name} is not supported in a checkpoint file of this family")
    return pieces


def _in_joint_block(state: Any, block: int, inner: str, kind: str, parts: tuple[Tensor, ...]) -> Pieces:
    if inner in REST_OF_QKV:
        return {}
    if inner in QKV:
        there, *others = QKV[inner]
        parts += tuple(state[f"transformer_blocks.{block}.{other}.{kind}"] for other in others)
        return {f"joint_blocks.{block}.{there}.{kind}": parts}
    if inner in INSIDE:
        return {f"joint_blocks.{block}.{INSIDE[inner]}.{kind}": parts}
    raise StageError(f"the transformer's {inner} is not supported in a checkpoint file of this family")


def _swapped(tensor: Tensor) -> tuple[Tensor, ...]:
    """Shift and scale, which are in the other order in checkpoint files."""
    half = tensor.shape[0] // 2
    return tensor[half:], tensor[:half]
