"""Reading as kohya's sd-scripts: `--weights` of the textual-inversion scripts and gen_img."""

from __future__ import annotations

from ..stored import Stored
from .reading import (
    REFUSED,
    Reading,
    bundle_tensors,
    embedding,
    misnamed,
    only_weights,
    refused,
    string_to_param,
    width,
)


def reads(file: Stored, widths: dict[str, int]) -> Reading:
    """One embedding named after the file: the first tensor, or for SDXL clip_l and clip_g by name.

    Imitates gen_img.py; `--weights` of the training scripts takes no nn.Parameter and no kind of dict but its own.
    """
    if why := misnamed(file) or ("" if only_weights(file) else REFUSED):
        return refused(why)
    if file.root in ("list", "tensor"):
        return refused("it takes tensors in a dict only")
    tensors = file.tensors
    if widths.keys() == {"clip_l", "clip_g"}:
        if not all(key in tensors and width(tensors[key]) == size for key, size in widths.items()):
            return refused("an SDXL embedding needs both clip_l and clip_g")
        return embedding(file.stem, {key: tensors[key] for key in widths}, tensors, widths)
    if len(widths) != 1 or not tensors:
        return refused("only SD 1, SD 2 and SDXL embeddings can be loaded")
    (only, size), entries = next(iter(widths.items())), string_to_param(tensors)
    named = bool(entries) and file.container != "safetensors"
    first = f"string_to_param.{next(iter(entries))}" if named else next(iter(tensors))
    if len(tensors[first].shape) < 2:
        return refused("it takes each number of a tensor of one dimension for a vector")
    if width(tensors[first]) != size:
        return refused(f"its vectors are {width(tensors[first])} wide, the model needs {size}")
    return embedding(file.stem, {only: tensors[first]}, tensors, (first,))


def reads_lora(file: Stored, widths: dict[str, int]) -> Reading:
    """Tensors that fit no module are listed and left out (networks/merge_lora.py fails at them with a KeyError)."""
    return Reading(dropped=bundle_tensors(file.tensors))
