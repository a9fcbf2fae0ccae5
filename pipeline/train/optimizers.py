"""Optimizers by the names that recipes use, from the libraries that keep them."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any

import torch
from torch import Tensor

from ..errors import StageError
from .shards import alike

Options = Mapping[str, Any]
Make = Callable[[Sequence[Tensor], Options, float], torch.optim.Optimizer]
EXTRAS = {"adamw8bit": "bitsandbytes"}  # the extra that brings a kind's library, where it is not `optimizers`


def _adamw(tensors: Sequence[Tensor], options: Options, rate: float) -> torch.optim.Optimizer:
    fused = all(tensor.is_cuda for tensor in tensors)  # one kernel for all weights, where there are kernels to save
    return torch.optim.AdamW(
        tensors, lr=rate, betas=_pair(options), eps=options["eps"], weight_decay=options["weight_decay"], fused=fused
    )


def _adamw_8bit(tensors: Sequence[Tensor], options: Options, rate: float) -> torch.optim.Optimizer:
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(
        tensors, lr=rate, betas=_pair(options), eps=options["eps"], weight_decay=options["weight_decay"]
    )  # fmt: skip


def _adafactor(tensors: Sequence[Tensor], options: Options, rate: float) -> torch.optim.Optimizer:
    from transformers import Adafactor

    return Adafactor(
        tensors, lr=rate, decay_rate=options["decay_rate"], clip_threshold=options["clip_threshold"],
        beta1=options["beta1"], scale_parameter=options["scale_parameter"], relative_step=False, warmup_init=False,
        weight_decay=options["weight_decay"],
    )  # fmt: skip


def _lion(tensors: Sequence[Tensor], options: Options, rate: float) -> torch.optim.Optimizer:
    from pytorch_optimizer import Lion

    return Lion(tensors, lr=rate, betas=_pair(options), weight_decay=options["weight_decay"])


def _came(tensors: Sequence[Tensor], options: Options, rate: float) -> torch.optim.Optimizer:
    from pytorch_optimizer import CAME

    first, second, third = options["betas"]
    return CAME(
        tensors, lr=rate, betas=(first, second, third), clip_threshold=options["clip_threshold"],
        weight_decay=options["weight_decay"],
    )  # fmt: skip


def _prodigy(tensors: Sequence[Tensor], options: Options, rate: float) -> torch.optim.Optimizer:
    from prodigyopt import Prodigy

    return Prodigy(
        tensors, lr=rate, betas=_pair(options), beta3=options["beta3"], eps=options["eps"],
        weight_decay=options["weight_decay"], use_bias_correction=options["bias_correction"],
        safeguard_warmup=options["safeguard_warmup"], d0=options["d0"], d_coef=options["d_coef"],
        growth_rate=options["growth_rate"] or float("inf"),
    )  # fmt: skip


def _prodigy_schedule_free(tensors: Sequence[Tensor], options: Options, rate: float) -> torch.optim.Optimizer:
    from prodigyplus.prodigy_plus_schedulefree import ProdigyPlusScheduleFree

    return ProdigyPlusScheduleFree(
        tensors, lr=rate, betas=_pair(options), eps=options["eps"], weight_decay=options["weight_decay"],
        d0=options["d0"], d_coef=options["d_coef"], prodigy_steps=options["adapt_steps"],
        use_bias_correction=options["bias_correction"], stochastic_rounding=False,
    )  # fmt: skip


def _adamw_schedule_free(tensors: Sequence[Tensor], options: Options, rate: float) -> torch.optim.Optimizer:
    from pytorch_optimizer import ScheduleFreeAdamW

    optimizer = ScheduleFreeAdamW(
        tensors, lr=rate, betas=_pair(options), eps=options["eps"], weight_decay=options["weight_decay"]
    )  # fmt: skip
    optimizer.train()
    return optimizer


OPTIMIZERS: dict[str, Make] = {
    "adamw": _adamw,
    "adamw-schedule-free": _adamw_schedule_free,
    "adamw8bit": _adamw_8bit,
    "adafactor": _adafactor,
    "lion": _lion,
    "came": _came,
    "prodigy": _prodigy,
    "prodigy-schedule-free": _prodigy_schedule_free,
}


def _pair(options: Options) -> tuple[float, float]:
    first, second = options["betas"]
    return float(first), float(second)


def make_optimizer(tensors: Sequence[Tensor], options: Options, rate: float) -> torch.optim.Optimizer:
    """The optimizer of a recipe's table for these float32 tensors.

    Raises StageError when its library is not installed.
    """
    try:
        with redirect_stdout(io.StringIO()):  # some say hello
            return OPTIMIZERS[options["kind"]](tensors, {"weight_decay": 0.0, **options}, rate)
    except ImportError as error:
        extra = EXTRAS.get(options["kind"], "optimizers")
        how = f"pip install 'pivotune[{extra}]'"
        raise StageError(f"the optimizer {options['kind']} needs {error.name}: {how}") from error


def load_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Go on from what `state_dict` gave. Unlike `load_state_dict` alone this keeps the data type of every tensor."""
    optimizer.load_state_dict(state)
    tensors = [tensor for group in optimizer.param_groups for tensor in group["params"]]
    for number, kept in state["state"].items():
        for name, value in kept.items():
            if isinstance(value, Tensor):
                there = optimizer.state[tensors[number]][name].device
                optimizer.state[tensors[number]][name] = alike(value.to(there), tensors[number])


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The learning rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def found(optimizer: torch.optim.Optimizer) -> float:
    """What the learning rate is multiplied by: the step size that Prodigy has found (its `d`), 1 for others."""
    return max(float(group.get("d", 1.0)) for group in optimizer.param_groups)


def effective_rate(optimizer: torch.optim.Optimizer) -> float:
    """The largest step size: the learning rate times what was found."""
    return max(float(group["lr"]) * float(group.get("d", 1.0)) for group in optimizer.param_groups)
