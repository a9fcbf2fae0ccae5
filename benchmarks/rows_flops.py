"""Goal 5: arithmetic and saved activations of one step on the full SDXL U-Net, counted without weights (meta device).

1024 pixels, one image, bfloat16, attention that saves no score matrix. Counts are exact, the same in every run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from measure import Row, in_fresh_process
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from pivotune.pipeline.models.denoisers import DENOISERS
from pivotune.pipeline.models.text import Text
from pivotune.pipeline.train.lora import add_lora

SDXL = {
    "sample_size": 128, "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280), "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20), "cross_attention_dim": 2048, "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
PARAMETERS = 2_567_463_684  # of the published model: the configuration above is the real one
MODES = ("full", "embeddings", "embeddings+checkpointing", "lora+embeddings")
LORA = {"targets": ["to_q", "to_k", "to_v", "to_out.0"], "rank": 16, "alpha": 16, "dropout": 0.0, "dora": False}


def rows() -> list[Row]:
    found: Any = in_fresh_process("rows_flops.py")
    flops, saved = ({mode: found[mode][what] for mode in MODES} for what in ("flops", "saved"))
    embeddings, checkpointed = "embeddings", "embeddings+checkpointing"
    of = "SDXL step, embeddings only"
    return [
        Row(f"{of}: FLOPs", "<= 0.72 of a full fine-tune", 0.72, [flops[embeddings] / flops["full"]]),
        Row(f"{of}: FLOPs", "<= 1.00 of LoRA + embeddings", 1.0, [flops[embeddings] / flops["lora+embeddings"]]),
        Row(f"{of}: saved activations", "<= 0.80 of a full fine-tune", 0.80, [saved[embeddings] / saved["full"]]),
        Row(f"{of}, checkpointing: saved activations", "<= 0.10 of a full fine-tune", 0.10,
            [saved[checkpointed] / saved["full"]]),
        Row("a loaded model: weights that take a gradient", "none: only the embeddings' rows", 0, [found["trained"]]),
    ]  # fmt: skip


def count(mode: str) -> dict[str, int]:
    """FLOPs of forward and backward, and bytes that forward saves for backward."""
    unet = _unet(mode)
    need = mode not in ("full", "lora")
    text = torch.empty(1, 77, 2048, device="meta", dtype=torch.bfloat16, requires_grad=need)
    pooled = torch.empty(1, 1280, device="meta", dtype=torch.bfloat16, requires_grad=need)
    noisy = torch.empty(1, 4, 128, 128, device="meta", dtype=torch.bfloat16)
    step = torch.empty(1, device="meta")
    weights = {parameter.untyped_storage()._cdata for parameter in unet.parameters()}
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in weights:
            saved[tensor.untyped_storage()._cdata] = tensor  # held, so that the address is not given out again
        return tensor

    with FlopCounterMode(display=False) as counter, flash_attention():
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            pipe = SimpleNamespace(unet=unet, vae_scale_factor=8)
            out = DENOISERS["unet_xl"].predict(pipe, noisy, step, Text(text, pooled))
        saved_bytes = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
        out.backward(torch.empty_like(out))
    return {"flops": counter.get_total_flops(), "saved": saved_bytes}


def trained_weights() -> int:
    """How many parameters of the quick start's model take a gradient, as the stages get it from the loader."""
    from pivotune.pipeline.models.load import load_model
    from pivotune.pipeline.recipe.load import load_recipe

    pipe = load_model(load_recipe("quickstart").model, torch.device("cpu")).pipe
    modules = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert len(modules) >= 3
    return sum(parameter.requires_grad for module in modules for parameter in module.parameters())


def _unet(mode: str) -> Any:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**SDXL)
        assert sum(parameter.numel() for parameter in unet.parameters()) == PARAMETERS
        for parameter in unet.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
        unet.requires_grad_(mode == "full").train(mode == "full")
        if mode.startswith("lora"):
            add_lora("denoiser", unet, LORA, seed=0)
    if mode.endswith("checkpointing"):
        unet.enable_gradient_checkpointing()
    return unet


@contextmanager
def flash_attention() -> Iterator[None]:
    """The meta device would decompose attention; a GPU runs one kernel that saves no scores."""

    def attend(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        found: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]
        return found

    with patch("torch.nn.functional.scaled_dot_product_attention", attend):
        yield


if __name__ == "__main__":
    print(json.dumps({"trained": trained_weights(), **{mode: count(mode) for mode in MODES}}))
