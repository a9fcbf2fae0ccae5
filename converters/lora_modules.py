"""The modules of a LoRA file: how each is called, and which kind of adapter it has."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

from .tensor import RawTensor

# The last parts of tensors' names in kohya's, PEFT's, diffusers' and LyCORIS' spellings, and what they stand for.
_TAILS = tuple(
    (re.compile(tail), part)
    for tail, part in (
        (r"lora_up\.weight|lora_B(\.\w+)?(\.weight)?|lora\.up\.weight|lora_linear_layer\.up\.weight", "up"),
        (r"lora_down\.weight|lora_A(\.\w+)?(\.weight)?|lora\.down\.weight|lora_linear_layer\.down\.weight", "down"),
        (r"lora_mid\.weight", "mid"),
        (r"dora_scale|lora_magnitude_vector(\.\w+)?(\.weight)?|magnitude", "dora"),
        (r"alpha|scale|scalar|rescale|on_input|bias_indices|bias_values|bias_size|reshape_weight", ""),
        (r"hada_(w[12]_[ab]|t[12])|lokr_(w[12](_[ab])?|t2)|oft_blocks|oft_diag|diff_b|diff|[wb]_norm|set_weight", ""),
        (r"oft_R\.weight|[ab][12]\.weight|lora_embedding_[AB](\.\w+)?|weight|bias", ""),
    )
)  # fmt: skip
_GLUED = re.compile(r"(?:_lora\d?\.|:)(up|down)(?:\.weight)?$")  # old diffusers, XLabs, cloneofsimo
MOST_PARTS, LONGEST = 3, 80  # of a tail: `lora_A.default.weight`
_LOKR = ({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"}), ({"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"})
# Kinds of adapters and the parts that they need; a kind with more of them comes first.
KINDS: dict[str, str] = {
    "LoCon with lora_mid": "up down mid",
    "LoRA": "up down",
    "LoHa": "hada_w1_a hada_w1_b hada_w2_a hada_w2_b",
    "GLoRA": "a1 a2 b1 b2",
    "full difference": "diff",
    "norm": "w_norm",
    "OFT of OneTrainer": "oft_R",
    "IA3": "weight on_input",
}
NAMED = "LoRA with adapter names"  # PEFT: `lora_A.default.weight`
OTHERS = ("LoKr", "OFT", "BOFT", NAMED, "unknown")


class LoraModule(NamedTuple):
    """`name` as in the file, `kind` of KINDS or OTHERS, `keys` of its tensors; `dora`: it has DoRA's magnitudes."""

    name: str
    kind: str
    dora: bool
    keys: tuple[str, ...]


def split_name(name: str) -> tuple[str, str] | None:
    """Module and part of a tensor's name, None for one that does not end like an adapter's."""
    if glued := _GLUED.search(name, max(0, len(name) - LONGEST)):
        return name[: glued.start()], glued[1]
    parts = name.rsplit(".", MOST_PARTS)
    for count in range(len(parts) - 1, 0, -1):
        tail = ".".join(parts[-count:])
        if len(tail) <= LONGEST and (part := _part(tail)) is not None:
            return name[: -len(tail) - 1], part
    return None


@lru_cache(maxsize=1024)
def _part(tail: str) -> str | None:
    for pattern, part in _TAILS:
        if pattern.fullmatch(tail):
            return part or tail.removesuffix(".weight")
    return None


def modules_of(tensors: Mapping[str, RawTensor]) -> list[LoraModule]:
    """All modules, in the order of the file. Tensors that end like no adapter's belong to none."""
    parts: dict[str, dict[str, str]] = {}
    for name in tensors:
        if (found := split_name(name)) is not None:
            parts.setdefault(found[0], {})[found[1]] = name
    return [
        LoraModule(module, _kind(names, tensors), "dora" in names, tuple(names.values()))
        for module, names in parts.items()
    ]


def _kind(names: Mapping[str, str], tensors: Mapping[str, RawTensor]) -> str:
    if {"up", "down"} <= names.keys() and ".default." in names["up"]:
        return NAMED
    for kind, needed in KINDS.items():
        if names.keys() >= set(needed.split()):
            return kind
    if all(any(names.keys() >= form for form in forms) for forms in _LOKR):
        return "LoKr"
    blocks = names.get("oft_blocks") or names.get("oft_diag")
    if blocks is not None:
        return "BOFT" if len(tensors[blocks].shape) == 4 else "OFT"
    return "unknown"


def kinds_of(modules: Iterable[LoraModule]) -> list[str]:
    """The kinds that occur, each once."""
    return list(dict.fromkeys(module.kind for module in modules))
