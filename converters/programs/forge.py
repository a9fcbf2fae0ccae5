"""Reading as Forge: A1111's parser for each text encoder by itself, each with the width that it expects."""

from __future__ import annotations

from collections.abc import Sequence

from ..families import Family
from ..lora_modules import LoraModule
from ..stored import Stored
from ..tensor import RawTensor
from .reading import BUNDLED, Reading, clips, embedding, misnamed, refused
from .webui import PICKLES, embedding_name, parse_embedding

MOST_UNMATCHED = 12


def reads(file: Stored, widths: dict[str, int]) -> Reading:
    """One embedding named after the file, for the CLIP encoders that expect its width (the T5 engine has none).

    With exactly CLIP-L and CLIP-G (SDXL) both expect the sum of the widths, in other models each its own
    (backend/diffusion_engine/sdxl.py, sd35.py, flux.py).
    """
    if why := misnamed(file, PICKLES):
        return refused(why)
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
    return embedding(embedding_name(file), vectors, file.tensors, used)


def refuses_lora(file: Stored, family: Family, modules: Sequence[LoraModule], unused: Sequence[str]) -> str:
    """More than 12 tensors that match no module make Forge skip the whole LoRA (load_lora_for_models)."""
    if len(unused) > MOST_UNMATCHED:
        return f"{len(unused)} tensors match no module, more than {MOST_UNMATCHED}: it skips the whole LoRA"
    return ""


def reads_lora(file: Stored, widths: dict[str, int]) -> Reading:
    """Embeddings are never used, and their tensors count as tensors that match no module."""
    unmatched = [name for name in file.tensors if name.startswith(BUNDLED) or "." not in name]
    if len(unmatched) > MOST_UNMATCHED:
        return refused(f"{len(unmatched)} tensors match no module, more than {MOST_UNMATCHED}: it skips the whole LoRA")
    return Reading(dropped=tuple(unmatched))
