"""The processes of a run as `accelerate launch` or torchrun started them."""

from __future__ import annotations

import os
from contextlib import nullcontext, suppress
from datetime import timedelta

from .errors import StageError
from .processes import ALONE, TIMEOUT, Elsewhere, Processes, reachable

MINUTES = 60.0
UNSUPPORTED = {
    "ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}  # fmt: skip


def is_main() -> bool:
    """Whether this is the process that speaks: the first of those that were launched, or the only one."""
    return os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1"


def begin_processes(wanted: str) -> Processes:
    """This process's place among those that `accelerate launch` or torchrun started; `ALONE` without them.

    `wanted` is the recipe's device. Raises StageError when they cannot form a group, or the launcher asks for what is
    not supported: the model is whole on every process.
    """
    _refuse_unsupported()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    import torch

    if torch.device(wanted if wanted != "auto" else "cpu").index is not None:
        raise StageError(f"device = {wanted!r}: with several processes the launcher gives each its device; no number")
    from accelerate import PartialState

    cpu = wanted == "cpu" or not (torch.cuda.is_available() or (hasattr(torch, "xpu") and torch.xpu.is_available()))
    minutes = float(os.environ.get(TIMEOUT, MINUTES))
    with reachable():
        state = PartialState(cpu=cpu, timeout=timedelta(minutes=minutes))
    if state.num_processes != int(os.environ["WORLD_SIZE"]):
        raise StageError("the launcher started several processes, but there is no way for them to talk on this device")
    return Processes(state.num_processes, state.process_index, state.device)


def end_processes(processes: Processes) -> None:
    """Leave the group, at the end of a run that went well."""
    if processes.count > 1:
        from accelerate import PartialState

        with nullcontext() if processes.main else suppress(Elsewhere):
            processes.any(False)  # the main process leaves when all have heard of its last work
        PartialState().destroy_process_group()


def _refuse_unsupported() -> None:
    asked = [name for variable, name in UNSUPPORTED.items() if os.environ.get(variable, "").lower() == "true"]
    if asked:
        raise StageError(
            f"the launcher asks for {', '.join(asked)}, which is not supported: every process holds the whole model; "
            "launch without it (accelerate launch --multi_gpu), and where memory is short use a LoRA or "
            "gradient_checkpointing"
        )
