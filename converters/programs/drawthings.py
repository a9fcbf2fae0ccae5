"""Reading as Draw Things: its importer of embeddings, for CLIP alone (ModelOp/Sources/EmbeddingImporter.swift)."""

from __future__ import annotations

from ..stored import Stored
from ..tensor import RawTensor
from .reading import Reading, bundle_tensors, embedding, refused, string_to_param, width

MOST_ROWS = 76  # of a tensor that it finds by its shape


def reads(file: Stored, widths: dict[str, int]) -> Reading:
    """One embedding: `*`, or clip_g and clip_l, or the tensor that has the shape of one. Values become float16."""
    if file.container == "pickle" and not file.members:
        return refused("it opens safetensors and zip files, not pickles of torch before 1.6")
    if file.root in ("list", "tensor"):
        return refused("it takes tensors in a dict only")
    tensors = {key: tensor for key, tensor in _named(file).items() if 1 <= len(tensor.shape) <= 2}
    if "clip_g" in tensors and "clip_l" in tensors:
        return _two(file, tensors, widths)
    fitting = {
        key: tensor
        for key, tensor in tensors.items()
        if width(tensor) in (768, 1024, *widths.values()) and (key == "*" or _rows(tensor) <= MOST_ROWS)
    }
    if "*" not in fitting and len(fitting) != 1:
        return refused(f"of its tensors {len(fitting)} have the width of SD 1 or SD 2; it takes a lone one")
    key = "*" if "*" in fitting else next(iter(fitting))
    if list(widths.values()) != [width(fitting[key])] or not next(iter(widths)).startswith("clip"):
        return refused(f"it imports vectors {width(fitting[key])} wide for another model")
    full = next(name for name in (f"string_to_param.{key}", key) if name in file.tensors)
    return embedding(file.stem, dict.fromkeys(widths, fitting[key]), file.tensors, (full,))


def _named(file: Stored) -> dict[str, RawTensor]:
    return (string_to_param(file.tensors) if file.container == "pickle" else {}) or file.tensors


def _rows(tensor: RawTensor) -> int:
    return tensor.shape[0] if len(tensor.shape) > 1 else 1


def _two(file: Stored, tensors: dict[str, RawTensor], widths: dict[str, int]) -> Reading:
    if widths.keys() != {"clip_l", "clip_g"} or any(width(tensors[key]) != size for key, size in widths.items()):
        return refused("it imports clip_l and clip_g for SDXL, with SDXL's widths")
    if _rows(tensors["clip_l"]) != _rows(tensors["clip_g"]):
        return refused("it imports clip_l and clip_g only with as many vectors each")
    return embedding(file.stem, {key: tensors[key] for key in widths}, file.tensors, widths)


def reads_lora(file: Stored, widths: dict[str, int]) -> Reading:
    """Its importer of LoRAs looks for no embeddings."""
    return Reading(dropped=bundle_tensors(file.tensors))
