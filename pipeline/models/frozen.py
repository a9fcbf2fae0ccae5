"""Outputs of text encoders in which nothing is trained, kept while another encoder is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .text import LastUsed

LIMIT = 1 << 30  # bytes of memory; of T5 at FLUX's 512 tokens in bfloat16 some 250 captions
_UNUSED = ("attentions", "past_key_values", "logits")  # fields of an output that no pipeline reads


class FrozenEncoder:
    """An encoder that encodes every caption once; the last used outputs are in CPU memory.

    Captions are encoded one by one, so that none depends on its batch and a resumed run gets the same bytes.
    """

    def __init__(self, module: nn.Module, limit: int = LIMIT) -> None:
        self.module = module
        self._cached = LastUsed[Any](limit, _bytes)

    @contextmanager
    def of(self, captions: Sequence[str]) -> Iterator[None]:
        """Within it, a call of the encoder with the ids of these captions returns cached outputs, without gradients."""
        original = self.module.forward

        def forward(input_ids: Tensor, **options: Any) -> Any:
            if len(input_ids) != len(captions):
                return original(input_ids, **options)
            return self._encode(original, captions, input_ids, options)

        own = vars(self.module).get("forward")
        self.module.forward = forward
        try:
            yield
        finally:
            if own is None:
                del self.module.forward
            else:
                self.module.forward = own

    @torch.no_grad()
    def _encode(
        self, original: Callable[..., Any], captions: Sequence[str], input_ids: Tensor, options: dict[str, Any]
    ) -> Any:
        def alone(number: int) -> Any:
            one = slice(number, number + 1)
            own = {name: value[one] if isinstance(value, Tensor) else value for name, value in options.items()}
            return _joined([original(input_ids[one], **own)], torch.device("cpu"))

        length = input_ids.shape[1]
        rows = [self._cached.get((one, length), partial(alone, number)) for number, one in enumerate(captions)]
        return _joined(rows, input_ids.device)


@contextmanager
def frozen_outputs(encoders: Sequence[FrozenEncoder], captions: Sequence[str]) -> Iterator[None]:
    """Within it these encoders return cached outputs for these captions."""
    with ExitStack() as stack:
        for encoder in encoders:
            stack.enter_context(encoder.of(captions))
        yield


def _joined(outputs: Sequence[Any], device: torch.device) -> Any:
    """One output of transformers for several of a batch each: tensors, and tuples of tensors, joined."""
    first = outputs[0]
    if isinstance(first, Tensor):
        return torch.cat(list(outputs)).to(device)
    if isinstance(first, tuple):
        return tuple(_joined(parts, device) for parts in zip(*outputs, strict=True))
    return type(first)(
        **{name: _joined([one[name] for one in outputs], device) for name in first if name not in _UNUSED}
    )


def _bytes(output: Any) -> int:
    if isinstance(output, Tensor):
        return output.nbytes
    return sum(map(_bytes, output if isinstance(output, tuple) else output.values()))
