"""Training in less memory: parts of the model are computed a second time instead of being kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..models.load import Model

SPELLINGS = (
    ("enable_gradient_checkpointing", "disable_gradient_checkpointing"),
    ("activation_checkpointing_enable", "activation_checkpointing_disable"),
    ("gradient_checkpointing_enable", "gradient_checkpointing_disable"),
)


@contextmanager
def less_memory(model: Model, wanted: bool) -> Iterator[None]:
    """Within it denoiser and text encoders keep only the borders of their layers, if that is wanted.

    The encoders' layers look whether they are in training mode before they do so; only this mark is set, and no
    dropout inside them: a step computes what it would have computed.
    """
    parts: list[Any] = (
        [model.denoiser, *(getattr(model.pipe, one.module_name) for one in model.encoders)] if wanted else []
    )
    for part in parts:
        # transformers' other way of going back loses the gradient of LoRAs behind embeddings that need none
        on, _ = _switches(part)
        on(*(() if hasattr(part, "enable_gradient_checkpointing") else ({"use_reentrant": False},)))
        _mark(part, True)
    try:
        yield
    finally:
        for part in parts:
            _, off = _switches(part)
            off()
            _mark(part, False)


def _switches(part: Any) -> tuple[Callable[..., None], Callable[[], None]]:
    """On and off, as diffusers, transformers and older transformers spell them."""
    for on, off in SPELLINGS:
        if hasattr(part, on):
            return getattr(part, on), getattr(part, off)
    raise TypeError(f"{type(part).__name__} cannot compute its layers twice")


def _mark(part: Any, training: bool) -> None:
    for module in part.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.training = training
