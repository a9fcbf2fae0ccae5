"""Reading as ComfyUI (and SwarmUI): `load_embed`, once for each text encoder, by its own names for them."""

from __future__ import annotations

from ..stored import Stored
from ..tensor import RawTensor, is_token_ids
from .reading import (
    REFUSED,
    Reading,
    Vectors,
    bundle_tensors,
    embedding,
    misnamed,
    only_weights,
    refused,
    string_to_param,
    width,
)

KEYS = {"t5": "t5xxl", "gemma": "gemma2_2b"}  # encoder key here to the name ComfyUI looks for
DEAF = ("gemma", "qwen", "qwen25_7b", "umt5xxl")  # encoders whose tokenizer gets no embeddings folder
SMALLEST = 768  # numbers in a storage that is taken for vectors
ALSO = {"qwen3_06b": ("t5xxl", 4096)}  # encoder, and the key and width of a second tokenizer that reads the same file
NO_IDS = (
    "the prompt fails: ComfyUI takes {key} of the file for token ids, which must be whole numbers, one for each row"
)
NO_WIDTH = "no tensor is as wide as the model's text encoders; the embedding is ignored with a warning"


def reads(file: Stored, widths: dict[str, int], *, bundles: bool = True) -> Reading:
    """One embedding named after the file.

    An encoder without a key of its own takes the first tensor, whatever it is; `bundles`: not before it looked for an
    embedding that is bundled in a LoRA.

    Order of the rules as in comfy/sd1_clip.py; a tensor of the wrong width is ignored with a warning.
    """
    if why := misnamed(file, (".pt", ".bin")):
        return refused(why)
    if file.root == "tensor":
        return refused("a tensor that is in no dict makes the prompt fail")
    if not only_weights(file):
        return _of_zip(file, widths)
    if file.root == "list" and not {width(tensor) for tensor in file.tensors.values()}.issuperset(widths.values()):
        return refused("a list without a tensor for each text encoder makes the prompt fail")
    vectors: Vectors = {}
    used: set[str] = set()
    for key, size in widths.items():
        names = [] if key in DEAF else _chosen(file, KEYS.get(key, key), size, bundles)
        if key in ALSO:
            also, wide = ALSO[key]
            ids = _chosen(file, also, wide, bundles)
            if not all(is_token_ids(file.tensors[name]) for name in ids) or not ids:
                return refused(NO_IDS.format(key=ids[0] if ids else also))
            used.update(ids)
        if names and all(width(file.tensors[name]) == size for name in names):
            vectors[key] = _joined([file.tensors[name] for name in names])
            used.update(names)
    if not vectors:
        return refused(NO_WIDTH)
    return embedding(file.stem, vectors, file.tensors, used)


def _of_zip(file: Stored, widths: dict[str, int]) -> Reading:
    """A pickle that torch refuses: the numbers of the last large tensor of a zip file, as float32, 768 or
    1024 wide."""
    large = [name for name, tensor in file.tensors.items() if len(tensor.stored) >= SMALLEST * 4][-1:]
    if not file.members or not large:
        return refused(REFUSED)
    tensor = file.tensors[large[0]]
    count = len(tensor.stored) // 4
    size = 768 if count % 768 == 0 else 1024
    if tensor.dtype != "F32" or width(tensor) != size:
        return refused(f"{REFUSED}, and its numbers are then read as float32 vectors of another width")
    vectors = {key: tensor for key, own in widths.items() if own == size and key not in DEAF}
    return embedding(file.stem, vectors, file.tensors, large) if vectors else refused(NO_WIDTH)


def _chosen(file: Stored, key: str, size: int, bundles: bool) -> list[str]:
    tensors = file.tensors
    if string_to_param(tensors):
        return [f"string_to_param.{next(iter(string_to_param(tensors)))}"]
    if file.root == "list":
        return [name for name, tensor in tensors.items() if width(tensor) == size]
    if key in tensors:
        return [key]
    bundled = [name for name in tensors if bundles and name.startswith("bundle_emb.")]
    for tail in (".string_to_param.*", f".{key}"):
        if found := [name for name in bundled if name.endswith(tail)]:
            return found
    return list(tensors)[:1]


def _joined(tensors: list[RawTensor]) -> RawTensor:
    if len(tensors) == 1:
        return tensors[0]
    size = width(tensors[0])
    data = b"".join(bytes(tensor.data) for tensor in tensors)
    count = sum(tensor.shape[0] if len(tensor.shape) > 1 else 1 for tensor in tensors)
    return RawTensor(tensors[0].dtype, (count, size), data)


def reads_lora(file: Stored, widths: dict[str, int]) -> Reading:
    """The LoRA loads, with a warning for each tensor of an embedding; embeddings are only looked up in
    the embeddings folder.
    """
    return Reading(dropped=bundle_tensors(file.tensors))
