"""What of a recipe goes with fine-tunes that FSDP or DeepSpeed spread over processes, before a model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import StageError
from ..processes import DEEPSPEED
from ..recipe.model import Recipe

SHARDABLE = ("adamw", "lion")  # optimizers that move each value by itself


def hold_spread(recipe: Recipe, sharding: str) -> None:
    """StageError for what does not go with the launcher's `sharding`, "FSDP" or "DeepSpeed"; empty for neither."""
    for number, stage in enumerate(recipe.stages, 1):
        if sharding and stage.kind == "train" and stage.options["finetune"]:
            try:
                _hold_stage(stage.options, recipe.model.dtype, sharding)
            except StageError as error:
                raise StageError(f"stage {number} ({stage.kind}): {error}") from None


def _hold_stage(options: Mapping[str, Any], dtype: str, sharding: str) -> None:
    for table in options["finetune"]:
        kind = table["optimizer"]["kind"]
        if kind not in SHARDABLE:
            raise StageError(
                f"finetune of {', '.join(table['parts'])}: the optimizer {kind} does not go with {sharding}, for it "
                f"looks at a weight as a whole, of which each process has a part; take {' or '.join(SHARDABLE)}, or "
                f"launch without {sharding}"
            )
    if options["compile"]:
        raise StageError(f"compile = true does not go with a fine-tune that {sharding} spreads over processes; "
                         "leave one out")  # fmt: skip
    if options["locality"]:
        raise StageError(f"locality does not go with a fine-tune that {sharding} spreads over processes; leave one out")
    if sharding == DEEPSPEED and dtype == "float16":
        raise StageError(
            "model.dtype = 'float16' does not go with a fine-tune that DeepSpeed spreads over processes, for a step "
            "that overflows cannot be asked again: take 'bfloat16', or launch with FSDP"
        )
