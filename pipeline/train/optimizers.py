"""Creates the optimizers of `recipe/optimizers.py`; learning rate schedules."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ..errors import StageError
from ..recipe.options import OptimizerOptions, ScheduleOptions
from .fsdp import sharded_like

Rule = Callable[[Tensor], Tensor]


class AverageSwap:
    """Swaps a schedule-free optimizer's average into its weights and back, bit for bit.

    The libraries compute the trained weights from the average again, with rounding: sampling would change training.
    """

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        self._trained: list[Tensor] = []

    @torch.no_grad()
    def use_average(self, average: bool) -> None:
        """Put the average (True) or the trained weights (False) into the weights; False only after True."""
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        if average:
            self._trained = [weight.detach().clone() for weight in weights]
            self.optimizer.eval()
            return
        self.optimizer.train()
        for weight, trained in zip(weights, self._trained, strict=True):
            weight.copy_(trained)
        self._trained = []

    def settle(self) -> None:
        """The average stays in the weights; the trained weights are dropped."""
        self._trained = []


@torch.no_grad()
def constrain(optimizer: Any, rule: Rule) -> None:
    """Apply a norm rule to a schedule-free optimizer's base sequence `z`, as projected gradient descent does.

    Applied to `y` alone, it would let `z` and the exported average grow. The average needs the rule once more when it
    is used: a mean of vectors has a smaller norm.
    """
    optimizer.eval()
    for state in optimizer.state.values():
        if "z" in state:
            state["z"].copy_(rule(state["z"]))
    optimizer.train()


def make_optimizer(tensors: Sequence[Tensor], options: OptimizerOptions, rate: float) -> torch.optim.Optimizer:
    """The optimizer of a recipe's table for these float32 tensors.

    Raises StageError when its library is not installed.
    """
    row = options.facts
    given = {**options.settings, "weight_decay": options.weight_decay}
    settings = {row.renamed.get(key, key): _as_argument(value) for key, value in given.items() if value is not None}
    if row.package == "torch":  # one kernel for all weights
        settings["fused"] = all(tensor.is_cuda for tensor in tensors)
    try:
        with redirect_stdout(io.StringIO()):  # some libraries print a greeting
            optimizer = getattr(import_module(row.module), row.name)(tensors, lr=rate, **settings, **row.fixed)
    except ImportError as error:
        hint = f"pip install 'pivotune[{row.extra}]'"
        raise StageError(f"the optimizer {options.kind} needs {error.name}: {hint}") from error
    if row.averages_itself:
        optimizer.train()
    made: torch.optim.Optimizer = optimizer
    return made


def _as_argument(value: Any) -> Any:
    """Libraries want floats in a tuple of betas."""
    return tuple(float(one) for one in value) if isinstance(value, tuple) else value


def load_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load what `state_dict` gave. Unlike `load_state_dict` alone this keeps the dtype of every tensor."""
    optimizer.load_state_dict(state)
    tensors = [tensor for group in optimizer.param_groups for tensor in group["params"]]
    for number, stored in state["state"].items():
        for name, value in stored.items():
            if isinstance(value, Tensor):
                there = optimizer.state[tensors[number]][name].device
                optimizer.state[tensors[number]][name] = sharded_like(value.to(there), tensors[number])


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The learning rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def learning_rate_factor(optimizer: torch.optim.Optimizer) -> float:
    """What the optimizer multiplies the learning rate by: Prodigy's `d`, 1 for others."""
    return max(float(group.get("d", 1.0)) for group in optimizer.param_groups)


def effective_learning_rate(optimizer: torch.optim.Optimizer) -> float:
    """The largest learning rate, multiplied by Prodigy's `d`."""
    return max(float(group["lr"]) * float(group.get("d", 1.0)) for group in optimizer.param_groups)


Shape = Callable[[float, ScheduleOptions], float]

# Each maps the share of steps done after the warmup, 0 to 1, to a factor.
SCHEDULES: dict[str, Shape] = {
    "constant": lambda done, options: 1.0,
    "linear": lambda done, options: 1.0 - done,
    "cosine": lambda done, options: 0.5 * (1.0 + math.cos(math.pi * done)),
    "sqrt": lambda done, options: math.sqrt(1.0 - done),
    "restarts": lambda done, options: 0.5 * (1.0 + math.cos(math.pi * (done * options.cycles % 1.0))),
    "polynomial": lambda done, options: (1.0 - done) ** options.power,
    "rex": lambda done, options: (1.0 - done) / (1.0 - 0.5 * done),  # Chen et al. 2021
}


def schedule_factor(schedule: ScheduleOptions, step: int, *, steps: int, warmup_steps: float) -> float:
    """Factor of the learning rate at `step`, counted from 0: a linear warmup, then the schedule to the last step.

    `restarts`, `polynomial` and `piecewise` are diffusers' cosine_with_restarts, polynomial and piecewise_constant.
    `warmup_steps` below 1 are a share of the steps.
    """
    warmup = round(warmup_steps * steps) if warmup_steps < 1 else int(warmup_steps)
    if step < warmup:
        return (step + 1) / warmup
    if schedule.kind == "piecewise":
        return _piece(schedule.pieces, step, steps)
    shape = SCHEDULES[schedule.kind]((step - warmup) / max(1, steps - warmup), schedule)
    end = float(schedule.end)
    return shape if schedule.kind == "constant" else end + (1.0 - end) * shape


def _piece(pieces: Sequence[tuple[float, float]], step: int, steps: int) -> float:
    """The factor of the last piece that has started; 1 before the first."""
    begun = [(start if start >= 1 else start * steps, factor) for start, factor in pieces]
    return next((float(factor) for start, factor in sorted(begun, reverse=True) if start <= step), 1.0)
