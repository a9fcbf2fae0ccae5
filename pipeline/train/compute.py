"""Gradient checkpointing and torch.compile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint

from ..errors import StageError
from ..models.denoisers import DENOISERS
from ..models.load import Model

SPELLINGS = (
    ("enable_gradient_checkpointing", "disable_gradient_checkpointing"),
    ("activation_checkpointing_enable", "activation_checkpointing_disable"),
    ("gradient_checkpointing_enable", "gradient_checkpointing_disable"),
)


@contextmanager
def gradient_checkpointing(model: Model, wanted: bool) -> Iterator[None]:
    """Within it the denoiser and text encoders use gradient checkpointing, if wanted.

    The layers of transformers do so only in training mode. Only the layers' own flag is set, not that of what is inside
    them: T5's attention would use dropout. So a step computes the same values.
    """
    away = hasattr(model.denoiser, "offload")
    lists = () if away else getattr(DENOISERS[model.family.denoiser_kind], "checkpointed", ())
    blocks = [block for name in lists for block in getattr(model.denoiser, name)] if wanted else []
    parts: list[Any] = [getattr(model.pipe, one.module_name) for one in model.encoders] if wanted else []
    if wanted and not blocks:
        second = getattr(model.pipe, "transformer_2", None)  # of Wan 2.2, for low noise
        parts += [model.denoiser] if second is None else [model.denoiser, second]
    parts = [part for part in parts if not hasattr(part, "offload")]  # whose blocks are checkpointed already
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    for part in parts:
        # transformers' reentrant checkpointing loses the gradient of LoRAs behind embeddings without gradient
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
        for block in blocks:
            del block.forward  # the class's own is back


def _switches(part: Any) -> tuple[Callable[..., None], Callable[[], None]]:
    """On and off, as diffusers, transformers and older transformers spell them."""
    for on, off in SPELLINGS:
        if hasattr(part, on):
            return getattr(part, on), getattr(part, off)
    raise TypeError(f"{type(part).__name__} has no gradient checkpointing")


def _mark(part: Any, training: bool) -> None:
    from transformers.modeling_layers import GradientCheckpointingLayer

    for module in part.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = training


@contextmanager
def compiled(denoiser: Any, wanted: bool) -> Iterator[None]:
    """Within it the denoiser is compiled at its first call.

    The module stays the same object with the same weights. Raises StageError where torch cannot compile it here.
    """
    if not wanted:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException

    denoiser.compile()
    try:
        yield
    except TorchDynamoException as error:
        from torch._inductor.runtime.cache_dir_utils import cache_dir

        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        hint = f"remove it, or if the cache is corrupt after a killed run, empty {cache_dir()}"
        raise StageError(f"compile = true: torch cannot compile the model here ({first}); {hint}") from error
    finally:
        denoiser._compiled_call_impl = None  # what `compile` sets; torch has no function to undo it
