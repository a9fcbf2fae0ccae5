"""Whether a run's model, what is trained of it and a step's activations fit into the device's memory: a rough look."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from ..recipe.model import Recipe, Stage
from .needs import VALUE, Needs, StageNeeds
from .size import size

CHECKPOINTED = 0.15  # of a step's activations, with gradient_checkpointing
_LIMIT, _USED = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")


@dataclass(frozen=True)
class Memory:
    """Bytes on the device: `least` for weights and what is trained, `most` with activations; `free` now, `total`."""

    least: int
    most: int
    free: int
    total: int


def memory_of(recipe: Recipe, needs: Needs, device: torch.device, edge: int) -> Memory | None:
    """What the hungriest train stage takes, and what the device has; None where the device does not tell."""
    there = device_memory(device)
    if there is None:
        return None
    sums = [(needs.frozen, needs.frozen)]
    for stage in needs.stages:
        least = needs.frozen + _trained(stage)
        sums.append((least, least + _activations(recipe.stages[stage.stage], needs, edge)))
    return Memory(max(least for least, _ in sums), max(most for _, most in sums), *there)


def memory_findings(memory: Memory | None, device: torch.device) -> tuple[list[str], list[str]]:
    """An error where even an empty device is too small for what is sure, a warning where it gets tight."""
    if memory is None:
        return [], []
    where = "this machine's memory" if device.type == "cpu" else f"the memory of {device}"
    less = "model.dtype = 'bfloat16', a smaller batch_size with gradient_accumulation, gradient_checkpointing = true"
    if memory.least > memory.total:
        return [f"{where} is {size(memory.total)}, and the model with what is trained takes {size(memory.least)} "
                f"before the first picture; try {less}"], []  # fmt: skip
    if memory.most > memory.free:
        return [], [f"{size(memory.free)} of {where} are free, and a step may take {size(memory.most)}; try {less}"]
    return [], []


def device_memory(device: torch.device) -> tuple[int, int] | None:
    """Free and total bytes of a device; None where nobody tells."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return int(free), int(total)
    if device.type == "xpu" and hasattr(torch.xpu, "mem_get_info"):
        free, total = torch.xpu.mem_get_info(device)
        return int(free), int(total)
    if device.type == "mps":
        total = int(torch.mps.recommended_max_memory())
        return total - int(torch.mps.driver_allocated_memory()), total
    return _machine()


def _machine() -> tuple[int, int]:
    """Of the machine with its swap, or of the container that the process is in."""
    import psutil

    memory = psutil.virtual_memory()
    free, total = int(memory.available), int(memory.total)
    with suppress(OSError, RuntimeError):  # a container may not report its swap
        swap = psutil.swap_memory()
        free, total = free + int(swap.free), total + int(swap.total)
    try:
        limit, used = int(_LIMIT.read_text("ascii")), int(_USED.read_text("ascii"))
    except (OSError, ValueError):  # no container, or none with a limit
        return free, total
    return min(free, limit - used), min(total, limit)


def _trained(stage: StageNeeds) -> int:
    """What a stage keeps beside the model: float32 values where the model's are others, gradients, state, averages."""
    total = 0
    for one in stage.moved:
        own = one.name.startswith("finetune.")
        total += one.state + VALUE * one.values * (1 if own and not one.copied else 2)
        total += one.values * (2 if one.copied else 0)
    return total


def _activations(stage: Stage, needs: Needs, edge: int) -> int:
    """What a step keeps of its batch for the backward pass."""
    options = stage.options
    pixels = ((options["resolution"] or edge) / needs.edge) ** 2
    share = CHECKPOINTED if options["gradient_checkpointing"] else 1.0
    return round(needs.activations * options["batch_size"] * pixels * share)
