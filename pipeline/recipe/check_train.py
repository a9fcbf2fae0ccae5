"""What a train stage trains, and with which optimizer: combinations that cannot be, or hardly can be meant."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from ...converters.families import Family
from .model import Recipe
from .nearest import did_you_mean
from .problem import Finding, Place
from .trained import DENOISER, TABLES

# kind of optimizer: the module that it comes from, and how to get it
_MODULES = {
    "adamw-schedule-free": ("pytorch_optimizer", "pivotune[optimizers]"),
    "adamw8bit": ("bitsandbytes", "pivotune[bitsandbytes]"),
    "lion": ("pytorch_optimizer", "pivotune[optimizers]"),
    "came": ("pytorch_optimizer", "pivotune[optimizers]"),
    "prodigy": ("prodigyopt", "pivotune[optimizers]"),
    "prodigy-schedule-free": ("prodigyplus", "pivotune[optimizers]"),
}


def train_findings(place: Place, options: dict[str, Any], recipe: Recipe, family: Family | None) -> Iterator[Finding]:
    """What is wrong with one train stage."""
    movable = [word for word in recipe.words if word.train]
    if not any(options[name] for name in TABLES):
        if not options["embeddings"]:
            yield Finding(
                place, "nothing to train: embeddings = false, no lora and no finetune; add lora = { rank = 16 }"
            )
        elif recipe.words and not movable:  # a recipe without words is told so once
            text = "nothing to train: every [[embedding]] has train = false, and this stage has no lora or finetune"
            yield Finding(place, text)
    elif options["embeddings"] and recipe.words and not movable:
        text = "embeddings = true, but every [[embedding]] has train = false: words are not trained"
        yield Finding((*place, "embeddings"), text, "warning")
    if options["caption_dropout"] == 1 and movable and options["embeddings"]:
        yield Finding((*place, "caption_dropout"), "1 leaves every caption empty, so no word is ever seen")
    yield from _parts(place, options, family)
    yield from _moves(place, options, options["steps"], options["learning_rate"])


def _parts(place: Place, options: dict[str, Any], family: Family | None) -> Iterator[Finding]:
    seen: dict[str, str] = {}
    for name in TABLES:
        for number, table in enumerate(options[name] or ()):
            where: Place = (*place, name, number)
            for part in table["parts"]:
                known = [DENOISER, *(family.widths if family else ())]
                if family is not None and part not in known:
                    yield Finding(where, f"{family.title} has no part '{part}'{did_you_mean(part, known)}")
                if part in seen:
                    yield Finding(where, f"{part} stands in {seen[part]} and {name} of this stage; one can have it")
                seen[part] = name
            own = table | ({"warmup_steps": 0} if table["warmup_steps"] == options["warmup_steps"] else {})
            yield from _moves(where, own, options["steps"], table["learning_rate"])


def _moves(place: Place, table: dict[str, Any], steps: int, rate: float | dict[str, float]) -> Iterator[Finding]:
    """Optimizer, rate and warm-up of the words or of a table."""
    kind, warmup = table["optimizer"]["kind"], table["warmup_steps"]
    module, extra = _MODULES.get(kind, ("torch", ""))
    if extra and find_spec(module) is None:
        yield Finding((*place, "optimizer"), f"{kind} needs {module}, which is not installed: pip install '{extra}'")
    highest = max(rate.values()) if isinstance(rate, dict) else rate
    if kind.startswith("prodigy") and highest < 0.1:
        text = (
            f"{kind} finds its step size itself and learning_rate multiplies it: {highest:g} is far below the usual 1"
        )
        yield Finding((*place, "learning_rate"), text, "warning")
    schedule = table["schedule"]
    if isinstance(schedule, dict) and (schedule["kind"] == "piecewise") != bool(schedule.get("pieces")):
        text = "piecewise and pieces = [[from, factor], ...] belong together"
        yield Finding((*place, "schedule"), text)
    if warmup >= 1 and warmup != int(warmup):
        yield Finding((*place, "warmup_steps"), f"{warmup:g} is neither a number of steps nor a share below 1")
    elif warmup >= steps:
        yield Finding((*place, "warmup_steps"), f"the warm-up takes all of the {steps} steps", "warning")
