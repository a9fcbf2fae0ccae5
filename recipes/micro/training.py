"""What the three trainings share: the rate's way, the optimizer, and checkpoints to go on from."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def rate(step: int, steps: int, warm_up: int = 100) -> float:
    """A short rise to 1, then half a cosine down to 0.02."""
    if step < warm_up:
        return (step + 1) / warm_up
    done = (step - warm_up) / max(1, steps - warm_up)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))


def fit(
    modules: nn.ModuleDict,
    loss_of: Callable[[int], Tensor],
    optimizer: torch.optim.Optimizer,
    steps: int,
    file: Path,
    after: Callable[[int], None] = lambda step: None,
) -> None:
    """Run the loop; a checkpoint every 250 steps, and a JSON line of the mean loss every 50.

    `loss_of(step)` answers the loss of one batch. It draws from torch's global generator, which is
    seeded with the step, so that a run that was stopped goes on as if it had not been.
    """
    first, log = load_checkpoint(file, modules, optimizer), file.with_suffix(".jsonl")
    peak = [group["lr"] if "peak" not in group else group["peak"] for group in optimizer.param_groups]
    seed, losses, began = torch.initial_seed(), [], time.monotonic()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for step in range(first, steps):
        torch.manual_seed(seed + 7919 * step)
        for group, value in zip(optimizer.param_groups, peak, strict=True):
            group["peak"], group["lr"] = value, value * rate(step, steps)
        loss = loss_of(step)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        after(step)
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            line = {"step": step + 1, "loss": sum(losses) / len(losses), "seconds": time.monotonic() - began}
            with log.open("a") as stream:
                stream.write(json.dumps(line) + "\n")
            losses.clear()
        if (step + 1) % 250 == 0 or step + 1 == steps:
            save_checkpoint(file, modules, optimizer, step + 1)
    torch.manual_seed(seed)


def save_checkpoint(file: Path, modules: nn.ModuleDict, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write beside and rename: a stop in the middle leaves the older one."""
    state: dict[str, Any] = {"modules": modules.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    torch.save(state, file.with_suffix(".part"))
    file.with_suffix(".part").rename(file)


def load_checkpoint(file: Path, modules: nn.ModuleDict, optimizer: torch.optim.Optimizer) -> int:
    """Fill in what an earlier run left; the answer is the step to go on with."""
    if not file.exists():
        return 0
    state = torch.load(file, weights_only=True)
    modules.load_state_dict(state["modules"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
