"""What a train stage trains, as its options say: every LoRA and fine-tune with its parts, defaults filled in."""

from __future__ import annotations

from typing import Any

from ... import schemas
from .fill import filled

DENOISER = "denoiser"
TABLES = ("lora", "finetune")


def fill_trained(options: dict[str, Any]) -> None:
    """Complete a train stage's options in place: `lora` and `finetune` become lists of whole tables, or stay None.

    A LoRA's alpha is its rank, a schedule or warm-up that is left out the stage's, and so is the decay of an optimizer.
    """
    _decay(options["optimizer"], 0.0)
    for name in TABLES:
        given = options[name]
        if given is not None:
            tables = [given] if isinstance(given, dict) else given
            file = f"tables/{name}.json"
            options[name] = [_whole(filled(table, schemas.schema(file), file), options) for table in tables]


def trained_parts(options: dict[str, Any], name: str) -> list[str]:
    """The parts that the stage's `lora` or `finetune` tables name, in their order."""
    return [part for table in options[name] or () for part in table["parts"]]


def _whole(table: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    if table.get("alpha", 0) is None:
        table["alpha"] = float(table["rank"])
    for key in ("schedule", "warmup_steps"):
        if table[key] is None:
            table[key] = options[key]
    _decay(table["optimizer"], table["weight_decay"])
    return table


def _decay(optimizer: dict[str, Any], default: float) -> None:
    if optimizer["weight_decay"] is None:
        optimizer["weight_decay"] = default
