"""Names of the UNet's modules in Stability's own code (`input_blocks`, `middle_block`, `output_blocks`).

Checkpoints of SD 1, SD 2 and SDXL use them for weights, kohya's scripts for the LoRA of an SDXL model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
    """What the numbering depends on: places each block takes, and which up blocks have attention."""

    each: int
    attentive: frozenset[int]


def unet_shape(config: Mapping[str, Any]) -> UNetShape:
    """The shape of a UNet2DConditionModel by its config. StageError for one that Stability's code cannot number."""
    layers = config["layers_per_block"]
    if not isinstance(layers, int):
        if len(set(layers)) > 1:
            raise StageError(f"a UNet with layers_per_block = {list(layers)} has no place in a checkpoint file")
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
    raise StageError(f"the UNet's {name} has no place in a checkpoint file of this family")


def _in_block(side: str, block: int, kind: str, layer: int, rest: str | None, shape: UNetShape) -> str:
    last = shape.each * block + shape.each
    if kind == "downsamplers":  # a place of its own behind the block's layers
        return f"input_blocks.{last}.0.op"
    if kind == "upsamplers":  # behind resnet and attention of the block's last layer
        return f"output_blocks.{last - 1}.{2 if block in shape.attentive else 1}.conv"
    number = shape.each * block + layer + (side == "down")
    inside = 0 if kind == "resnets" else 1
    return _joined(f"{'input' if side == 'down' else 'output'}_blocks.{number}.{inside}", _inner(kind, rest))


def _inner(kind: str, rest: str | None) -> str | None:
    return RESNET[rest] if kind == "resnets" and rest else rest


def _joined(name: str, rest: str | None) -> str:
    return f"{name}.{rest}" if rest else name
