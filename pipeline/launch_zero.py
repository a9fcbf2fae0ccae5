"""What a launcher may ask of DeepSpeed: that optimizers of fine-tunes are spread over the processes (ZeRO 1 and 2).

Everything else that DeepSpeed can be told is the recipe's to say, or is done by FSDP; it is refused with the way out.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

from .errors import StageError

OLDEST = "0.19.6"  # adds gradients up (`gradient_allreduce_op`); those before take their mean, whatever one asks
STAGES = (1, 2)
SAID_BY_RECIPE = {
    "optimizer": "optimizer", "scheduler": "schedule", "gradient_clipping": "clip_norm", "fp16": "model.dtype",
    "bf16": "model.dtype", "gradient_accumulation_steps": "gradient_accumulation",
    "train_batch_size": "batch_size", "train_micro_batch_size_per_gpu": "batch_size",
}  # fmt: skip
OPTIONS_OFF = {
    "ACCELERATE_MIXED_PRECISION": ("mixed_precision", "the recipe's model.dtype says it"),
    "ACCELERATE_DYNAMO_BACKEND": ("dynamo_backend", "a fine-tune that is spread cannot be compiled"),
}
# What Accelerate itself fills in, and what only says how much DeepSpeed tells of itself.
SAYS_NOTHING: dict[str, tuple[Any, ...]] = {"gradient_accumulation_steps": (1,), "gradient_predivide_factor": (1,)}
HARMLESS = {
    "zero_optimization", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "steps_per_print",
    "wall_clock_breakdown", "memory_breakdown", "dump_state", "comms_logger", "flops_profiler", "tensorboard", "wandb",
    "csv_monitor", "comet",
}  # fmt: skip


def hold_deepspeed() -> None:
    """StageError when DeepSpeed is not there, or the launcher's configuration of it asks for what is not done here."""
    if find_spec("deepspeed") is None:
        raise StageError("the launcher asks for DeepSpeed, which is not installed: pip install 'pivotune[deepspeed]'")
    from accelerate.utils import DeepSpeedPlugin, compare_versions

    if compare_versions("deepspeed", "<", OLDEST):
        raise StageError(
            f"the launcher asks for DeepSpeed, of which this one is too old: pip install 'deepspeed>={OLDEST}'"
        )
    for variable, (option, said) in OPTIONS_OFF.items():
        if os.environ.get(variable, "no").lower() != "no":
            raise StageError(f"the launcher asks for DeepSpeed with {option}: say --{option} no, for {said}")
    try:
        config: dict[str, Any] = DeepSpeedPlugin().deepspeed_config
    except (ValueError, AttributeError, TypeError, KeyError, OSError) as error:  # it looks at nothing before it uses it
        raise StageError(f"the launcher's settings of DeepSpeed: {error}") from error
    _hold_zero(config["zero_optimization"])
    for name in sorted(config.keys() - HARMLESS):
        _hold_option(name, config[name])


def _hold_option(name: str, asked: Any) -> None:
    if isinstance(asked, dict) and "enabled" in asked:
        asked = asked["enabled"]
    if asked in (None, "auto", False, *SAYS_NOTHING.get(name, ())):
        return
    way = f"for the recipe's {SAID_BY_RECIPE[name]} says it" if name in SAID_BY_RECIPE else "it is not supported"
    raise StageError(f"the launcher tells DeepSpeed its {name}: leave it out, {way}")


def _hold_zero(config: dict[str, Any]) -> None:
    stage = config.get("stage", 0)
    if stage not in STAGES:
        raise StageError(
            f"the launcher asks for DeepSpeed with ZeRO {stage!r}: say --zero_stage 2 (or 1); "
            + ("launch with --multi_gpu where nothing is to be spread" if stage == 0 else
               "to spread the weights too, launch with FSDP: --use_fsdp --fsdp_version 2")
        )  # fmt: skip
    for name in ("offload_optimizer", "offload_param", "cpu_offload", "cpu_offload_params"):
        asked = config.get(name)
        if (asked.get("device") if isinstance(asked, dict) else asked) not in (None, False, "none"):
            raise StageError(f"the launcher asks for DeepSpeed with {name}, which is not supported: leave it out")
