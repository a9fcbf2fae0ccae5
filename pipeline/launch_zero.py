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
}  # fmt: skip
OPTIONS_OFF = {
    "ACCELERATE_MIXED_PRECISION": ("mixed_precision", "the recipe's model.dtype says it"),
    "ACCELERATE_DYNAMO_BACKEND": ("dynamo_backend", "a fine-tune that is spread cannot be compiled"),
}
SAYS_NOTHING = {"gradient_accumulation_steps": (None, "auto", 1)}  # 1 is what Accelerate itself fills in


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
    except ValueError as error:
        raise StageError(f"the launcher's settings of DeepSpeed: {error}") from error
    _hold_zero(config["zero_optimization"])
    for name, option in SAID_BY_RECIPE.items():
        asked = config.get(name)
        if isinstance(asked, dict) and "enabled" in asked:
            asked = asked["enabled"]
        if asked not in SAYS_NOTHING.get(name, (None, "auto", False)):
            raise StageError(
                f"the launcher tells DeepSpeed its {name}: leave it out, for the recipe's {option} says it"
            )


def _hold_zero(config: dict[str, Any]) -> None:
    stage = config.get("stage", 0)
    if stage not in STAGES:
        raise StageError(
            f"the launcher asks for DeepSpeed with ZeRO {stage}: say --zero_stage 2 (or 1); "
            + ("launch with --multi_gpu where nothing is to be spread" if stage == 0 else
               "to spread the weights too, launch with FSDP: --use_fsdp --fsdp_version 2")
        )  # fmt: skip
    for name in ("offload_optimizer", "offload_param"):
        if ((config.get(name) or {}).get("device") or "none") != "none":
            raise StageError(f"the launcher asks for DeepSpeed with {name}, which is not supported: leave it out")
