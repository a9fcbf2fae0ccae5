"""Reading as kohya's sd-scripts: `--weights` of the textual-inversion scripts and gen_img."""

from __future__ import annotations

from ..slots import as_rows
from ..stored import Stored
from .reading import REFUSED, Reading, bundle_tensors, embedding, only_weights, refused, string_to_param, width


def reads(file: Stored, widths: dict[str, int]) -> Reading:
    """One embedding named after the file: the first tensor, or for SDXL clip_l and clip_g by name."""
    if not only_weights(file):
        return refused(REFUSED)
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
    if width(tensors[first]) != size:
        return refused(f"its vectors are {width(tensors[first])} wide, the model needs {size}")
    return embedding(file.stem, {only: as_rows(tensors[first])}, tensors, (first,))


def reads_lora(file: Stored, widths: dict[str, int]) -> Reading:
    """Tensors that fit no module are listed and left out (networks/merge_lora.py fails at them with a KeyError)."""
    return Reading(dropped=bundle_tensors(file.tensors))
