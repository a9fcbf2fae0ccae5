"""The processes of a run as `accelerate launch` or torchrun started them."""

from __future__ import annotations

import os
from contextlib import nullcontext, suppress
from datetime import timedelta

from .distributed import SINGLE_PROCESS, TIMEOUT, PeerFailed, Processes, peer_errors
from .errors import StageError

MINUTES = 60.0
UNSUPPORTED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}  # fmt: skip


def is_main() -> bool:
    """Whether this is the main process: the first one that was launched, or the only one."""
    return os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1"


def join_processes(wanted: str) -> Processes:
    """This process's rank among those that `accelerate launch` or torchrun started; `SINGLE_PROCESS` without them.

    `wanted` is the recipe's device. Raises StageError when they cannot form a group, or the launcher asks for what is
    not supported: every process has the full model.
    """
    _refuse_unsupported()
    sharding = _enabled("ACCELERATE_USE_FSDP")
    if sharding:
        _require_fsdp2()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return SINGLE_PROCESS
    import torch

    if torch.device(wanted if wanted != "auto" else "cpu").index is not None:
        raise StageError(f"device = {wanted!r}: with several processes the launcher assigns devices; remove the number")
    from accelerate import PartialState

    cpu = wanted == "cpu" or not (torch.cuda.is_available() or (hasattr(torch, "xpu") and torch.xpu.is_available()))
    minutes = float(os.environ.get(TIMEOUT, MINUTES))
    with peer_errors():
        state = PartialState(cpu=cpu, timeout=timedelta(minutes=minutes))
    if state.num_processes != int(os.environ["WORLD_SIZE"]):
        raise StageError("the launcher started several processes, but this device has no backend for communication")
    return Processes(state.num_processes, state.process_index, state.device, sharding)


def end_processes(processes: Processes) -> None:
    """Leave the group, at the end of a finished run."""
    if processes.count > 1:
        from accelerate import PartialState

        with nullcontext() if processes.main else suppress(PeerFailed):
            processes.any(False)  # the main process leaves last
        PartialState().destroy_process_group()


def _enabled(variable: str) -> bool:
    return os.environ.get(variable, "").lower() == "true"


def _refuse_unsupported() -> None:
    asked = [name for variable, name in UNSUPPORTED.items() if _enabled(variable)]
    if asked:
        raise StageError(
            f"the launcher's configuration: {', '.join(asked)} is not supported; to shard a fine-tune use FSDP2 "
            "(accelerate launch --use_fsdp --fsdp_version 2), else launch with --multi_gpu"
        )


def _require_fsdp2() -> None:
    """StageError for unsupported settings of FSDP; every process loads the full model before it is sharded."""
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise StageError("FSDP 1 is not supported; use --fsdp_version 2, or fsdp_version: 2 in its config file")
    if _enabled("FSDP_OFFLOAD_PARAMS"):
        raise StageError("fsdp_offload_params is not supported; remove it from the launcher's config")
    if _enabled("FSDP_ACTIVATION_CHECKPOINTING"):
        raise StageError(
            "fsdp_activation_checkpointing is not supported; remove it, and set "
            "gradient_checkpointing = true in the recipe"
        )
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"  # else transformers loads weights in one process only
