"""The modules of a LoRA file that is a plain LoRA: two matrices each and a scale; every other kind is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from .bundle import PREFIX
from .errors import ConvertError
from .lora_modules import NAMED, modules_of, split_name
from .lora_renaming import peft_facts
from .tensor import RawTensor

KINDS = ("LoRA", NAMED)


class PlainModule(NamedTuple):
    """Names of the tensors of a module; `alpha` is a name, a number from the metadata, or None: the rank.

    `down` is (rank, in) or (rank, in, height, width), `up` (out, rank) or (out, rank, 1, 1).
    """

    down: str
    up: str
    alpha: str | float | None


def plain_modules(tensors: Mapping[str, RawTensor], metadata: Mapping[str, str]) -> dict[str, PlainModule]:
    """The modules of a LoRA by their names in the file, without the embeddings that are bundled in it.

    Raises ConvertError, without the file's name, for another kind of adapter, DoRA, or a scale that is not in the file.
    """
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith(PREFIX)}
    facts, found = peft_facts(metadata), {}
    for module in modules_of(own):
        if module.kind not in KINDS:
            raise ConvertError(f"is no plain LoRA ({module.name} has {module.kind}), the only kind that is trained on")
        if module.dora:
            raise ConvertError(f"is a DoRA ({module.name} has magnitudes); a base is a LoRA without them")
        parts = {part: key for key in module.keys for part in [(split_name(key) or ("", ""))[1]]}
        if more := sorted(parts.keys() - {"down", "up", "alpha"}):
            raise ConvertError(f"has {more[0]} in {module.name}, which is no part of a plain LoRA")
        down, up = (tensors[parts[name]].shape for name in ("down", "up"))
        fit = len(down) in (2, 4) and len(up) == len(down) and up[1] == down[0] and not set(up[2:]) > {1}
        if not fit or 0 in (*down, *up):
            raise ConvertError(f"has matrices of shapes {down} and {up} in {module.name}, which do not fit together")
        if "alpha" in parts and math.prod(tensors[parts["alpha"]].shape) != 1:
            raise ConvertError(f"has an alpha in {module.name} that is not one number")
        found[module.name] = PlainModule(parts["down"], parts["up"], _alpha(module.name, parts, facts))
    lost = next((name for name in own if split_name(name) is None), None)
    if lost is not None or not found:
        raise ConvertError(f"has a tensor {lost!r} of no LoRA" if lost else "has no LoRA in it")
    return found


def _alpha(module: str, parts: Mapping[str, str], facts: Mapping[str, Any]) -> str | float | None:
    if "alpha" in parts:
        return parts["alpha"]
    alpha = facts.get(f"{module.partition('.')[0]}.lora_alpha")
    if isinstance(alpha, int | float):
        if not math.isfinite(alpha):
            raise ConvertError(f"has lora_alpha = {alpha} in its metadata, which is not a finite number")
        return float(alpha)
    if module.startswith("base_model."):
        raise ConvertError("is PEFT's own file, whose alpha is in adapter_config.json; save it with diffusers or kohya")
    return None
