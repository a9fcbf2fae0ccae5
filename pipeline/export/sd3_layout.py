"""The parts of SD3 as Stability's own code lays them out, beside what it shares with older models (`sgm_layout`).

Names from Stability's sd3-ref (`mmdit.py`) and diffusers' `convert_sd3_transformer_checkpoint_to_diffusers`.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from ..errors import StageError
from .sgm_layout import Pieces

ENDS = {
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
# of query, key and value, which are one matrix there, the query's name: it stands for all three
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
            pieces |= _in_block(state, block, inner, kind, _swapped(tensor) if swapped else (tensor,))
        elif name == "pos_embed.pos_embed":
            pieces["pos_embed"] = (tensor,)
        elif stem == "norm_out.linear":
            pieces[f"final_layer.adaLN_modulation.1.{kind}"] = _swapped(tensor)
        elif stem in ENDS:
            pieces[f"{ENDS[stem]}.{kind}"] = (tensor,)
        else:
            raise StageError(f"the transformer's {name} has no place in a checkpoint file of this family")
    return pieces


def _in_block(state: Any, block: int, inner: str, kind: str, parts: tuple[Tensor, ...]) -> Pieces:
    if inner in REST_OF_QKV:
        return {}
    if inner in QKV:
        there, *others = QKV[inner]
        parts += tuple(state[f"transformer_blocks.{block}.{other}.{kind}"] for other in others)
        return {f"joint_blocks.{block}.{there}.{kind}": parts}
    if inner in INSIDE:
        return {f"joint_blocks.{block}.{INSIDE[inner]}.{kind}": parts}
    raise StageError(f"the transformer's {inner} has no place in a checkpoint file of this family")


def _swapped(tensor: Tensor) -> tuple[Tensor, ...]:
    """Shift and scale, which stand the other way round there."""
    half = tensor.shape[0] // 2
    return tensor[half:], tensor[:half]
