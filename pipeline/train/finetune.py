"""Which of the model's own weights a fine-tune moves."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..errors import StageError
from .lora import has_lora

LAYERS: dict[str, tuple[str, ...]] = {
    "all": ("",),
    "attention": (".attn", "self_attn", "SelfAttention"),
    "cross-attention": (".attn2.",),
}


def weights_to_tune(part: str, module: nn.Module, layers: str | Sequence[str]) -> dict[str, nn.Parameter]:
    """The weights of a part by name, but for an encoder's vocabulary, whose names hold what `layers` asks for.

    Raises StageError when there are none, or a LoRA lies on the part: its file would not fit the tuned weights.
    """
    if has_lora(module):
        raise StageError(f"{part} has a LoRA and cannot be fine-tuned under it: tune it in a stage before the LoRA")
    texts = LAYERS[layers] if isinstance(layers, str) else tuple(layers)
    vocabulary = {id(parameter) for parameter in _vocabulary(module)}
    chosen = {
        name: parameter
        for name, parameter in module.named_parameters()
        if id(parameter) not in vocabulary and any(text in f".{name}" for text in texts)
    }
    if not chosen:
        known = ", ".join(dict.fromkeys(name.split(".")[0] for name, _ in module.named_parameters()))
        raise StageError(f"finetune.layers = {layers!r} fits no weight of {part}; its names begin with {known}")
    return chosen


def _vocabulary(module: nn.Module) -> list[nn.Parameter]:
    """The table of an encoder's tokens: what a run never changes."""
    table = getattr(module, "get_input_embeddings", None)
    if table is None:
        return []
    try:
        return list(table().parameters())
    except NotImplementedError:  # a denoiser has none
        return []
