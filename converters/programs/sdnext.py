"""Reading as SD.Next: all tensors of a .safetensors, given to the encoders by width alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import count_of
from ..families import Family
from ..lora_modules import LoraModule
from ..stored import Stored
from ..tensor import RawTensor
from .reading import (
    BUNDLED,
    REFUSED,
    Reading,
    Vectors,
    bundle_tensors,
    cut_at_first_dots,
    embedding,
    misnamed,
    only_weights,
    refused,
    string_to_param,
    width,
)


def reads(file: Stored, widths: dict[str, int]) -> Reading:
    """As `_by_width`; the folder of embeddings is read for models with CLIP encoders alone (`supported_models`)."""
    if not all(key.startswith("clip") for key in widths):
        return refused("its embeddings folder is read for SD 1, SD 2 and SDXL only")
    return _by_width(file, widths)


def _by_width(file: Stored, widths: dict[str, int]) -> Reading:
    """One embedding, named after the file; of two tensors of one width the later one is used.

    Imitates modules/textual_inversion.py: only .safetensors and .pt are listed, a .pt must hold
    `string_to_param["*"]`, and a file is skipped if a width is unknown or the number of tensors does not fit.
    """
    if Path(file.path).suffix.lower() not in (".safetensors", ".pt"):
        return refused("only .safetensors and .pt files are listed")
    if why := misnamed(file) or ("" if only_weights(file) else REFUSED):
        return refused(why)
    tensors = file.tensors
    if file.container != "safetensors":
        lone = string_to_param(tensors).get("*")
        if lone is None:
            return refused('a .pt must hold string_to_param["*"]')
        tensors = {"string_to_param.*": lone}
    sizes = [width(tensor) for tensor in tensors.values()]
    if not set(sizes) <= set(widths.values()):
        return refused("a tensor is as wide as no text encoder of the model; the file is skipped")
    if len(sizes) > len(widths) or (len(sizes) < len(widths) and len(sizes) != 2):
        found = f"{count_of(len(sizes), 'tensor')} for {count_of(len(widths), 'text encoder')}"
        return refused(f"{found}; the file is skipped")
    vectors: dict[str, RawTensor] = {}
    for key, size in widths.items():
        for tensor in tensors.values():
            if width(tensor) == size:
                vectors[key] = tensor
    return embedding(file.stem, vectors, file.tensors, tensors)


def refuses_lora(file: Stored, family: Family, modules: Sequence[LoraModule], unused: Sequence[str]) -> str:
    """A kohya LoRA of a transformer is converted first, which fails if anything else is in the file: then nothing of
    the transformer is left (modules/lora/lora_load.py, lora_convert.py).
    """
    if not {"clip_l", "t5"} <= family.widths.keys() or not any(name.startswith("lora_unet_") for name in file.tensors):
        return ""
    joint = [module.name for module in modules if module.name.startswith("lora_unet_joint_blocks_")]
    lone = next((name for name in joint if f"{name}.alpha" not in file.tensors), "")
    if lone:
        return f"its conversion of kohya's layout fails without {lone[:60]}.alpha"
    others = [name for name in file.tensors if not name.startswith("lora_unet_")]
    return f"its conversion of kohya's layout drops the transformer because of {others[0][:60]!r}" if others else ""


def reads_lora(file: Stored, widths: dict[str, int]) -> Reading:
    """Embeddings by width, named up to the first dot; they stay in the tokenizer when the LoRA leaves the prompt."""
    if any("." not in name for name in file.tensors):
        return refused("a tensor's name has no dot, so its loader fails")
    if not file.is_lora:
        return refused("without a module of a LoRA, it does not read the embeddings")
    kept: dict[str, Vectors] = {}
    used: set[str] = set()
    for name, tensors in cut_at_first_dots(file.tensors).items():
        one = _by_width(Stored(file.path.with_suffix(".safetensors"), tensors), widths)
        if not one.refusal and name:
            kept[name] = next(iter(one.embeddings.values()))
            used.update(f"{BUNDLED}{name}.{key}" if key else f"{BUNDLED}{name}" for key in tensors)
    return Reading(kept, tuple(full for full in bundle_tensors(file.tensors) if full not in used))
