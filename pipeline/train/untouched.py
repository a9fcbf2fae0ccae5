"""The model as it was before it was tuned, for as long as one looks at it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Copies = Mapping[nn.Parameter, Tensor]


def copies(parameters: Iterable[nn.Parameter]) -> dict[nn.Parameter, Tensor]:
    """The values that weights have now, to be put back by `untouched`: as much memory as the weights take."""
    return {parameter: parameter.detach().clone() for parameter in parameters}


@contextmanager
def untouched(models: Iterable[nn.Module], before: Copies) -> Iterator[None]:
    """Within it LoRAs are switched off and the weights in `before` have those values; no copy of the model is made."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for model in models for module in model.modules() if isinstance(module, BaseTunerLayer)]
    asked = [(parameter, parameter.requires_grad) for layer in layers for parameter in layer.parameters()]
    now = {parameter: parameter.data for parameter in before}
    try:
        for layer in layers:
            layer.enable_adapters(False)
        for parameter, values in before.items():
            parameter.data = values
        with torch.no_grad():
            yield
    finally:
        for parameter, values in now.items():
            parameter.data = values
        for layer in layers:
            layer.enable_adapters(True)
        for parameter, wanted in asked:  # switching LoRAs on makes all of them trainable
            parameter.requires_grad_(wanted)
