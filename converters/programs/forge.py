"""Reading as Forge: A1111's parser for each text encoder by itself, each with the width that it expects."""

from __future__ import annotations

from ..stored import Stored
from ..tensor import RawTensor
from .reading import BUNDLED, Reading, clips, embedding, refused
from .webui import parse_embedding

MOST_UNMATCHED = 12


def reads(file: Stored, widths: dict[str, int]) -> Reading:
    """One embedding called like the file, for the CLIP encoders whose expected width it meets (the T5 engine has none).

    With exactly CLIP-L and CLIP-G (SDXL) both expect the sum of the widths, in any other model each its own
    (backend/diffusion_engine/sdxl.py, sd35.py, flux.py).
    """
    found = parse_embedding(file)
    if isinstance(found, str):
        return refused(found)
    tensors, size = found
    encoders = clips(widths)
    joint = widths.keys() == {"clip_l", "clip_g"}
    vectors: dict[str, RawTensor] = {}
    used: set[str] = set()
    for key, own in encoders.items():
        source = "" if "" in tensors else key
        if size == (sum(encoders.values()) if joint else own) and source in tensors:
            vectors[key] = tensors[source]
            used.update(file.tensors if source == "" else (key,))
    if not vectors or (joint and "" in tensors):
        return refused(f"its vectors are {size} wide, which no text encoder of this model expects")
    return embedding(file.stem, vectors, file.tensors, used)


def reads_lora(file: Stored, widths: dict[str, int]) -> Reading:
    """Embeddings are never used; with too many tensors that fit no module the LoRA is dropped
    (load_lora_for_models).
    """
    unmatched = [name for name in file.tensors if name.startswith(BUNDLED) or "." not in name]
    if len(unmatched) > MOST_UNMATCHED:
        return refused(f"{len(unmatched)} tensors fit no module, more than {MOST_UNMATCHED}: the whole LoRA is refused")
    return Reading(dropped=tuple(unmatched))
