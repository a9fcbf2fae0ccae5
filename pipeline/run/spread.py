"""Which keys of a recipe cannot be used with fine-tunes that FSDP2 shards, checked before a model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import StageError
from ..recipe.model import Recipe

SHARDABLE = ("adamw", "lion")  # optimizers that move each value by itself


def hold_spread(recipe: Recipe, *, sharding: bool) -> None:
    """StageError for keys that cannot be used where the launcher asks for FSDP2 (`sharding`)."""
    for number, stage in enumerate(recipe.stages, 1):
        if sharding and stage.kind == "train" and stage.options["finetune"]:
            try:
                _hold_stage(stage.options)
            except StageError as error:
                raise StageError(f"stage {number} ({stage.kind}): {error}") from None


def _hold_stage(options: Mapping[str, Any]) -> None:
    for table in options["finetune"]:
        kind = table["optimizer"]["kind"]
        if kind not in SHARDABLE:
            raise StageError(
                f"finetune of {', '.join(table['parts'])}: the optimizer {kind} cannot be used with FSDP, as it needs "
                f"whole weights, not shards; use {' or '.join(SHARDABLE)}, or launch without FSDP"
            )
    if options["compile"]:
        raise StageError("compile = true cannot be used with a fine-tune that FSDP shards; remove one of them")
    if options["locality"]:
        raise StageError("locality cannot be used with a fine-tune that FSDP shards; remove one of them")
