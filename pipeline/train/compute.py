"""Gradient checkpointing and torch.compile, where a recipe asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import StageError
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


@contextmanager
def compiled(denoiser: Any, wanted: bool) -> Iterator[None]:
    """Within it the denoiser's calls are compiled, which takes a while at the first and changes nothing but time.

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
        way_out = f"leave it out, or if it is what an earlier kill left half written, empty {cache_dir()}"
        raise StageError(f"compile = true: torch cannot compile the model here ({first}); {way_out}") from error
    finally:
        denoiser._compiled_call_impl = None  # what `compile` sets; torch has no embedding for taking it back
