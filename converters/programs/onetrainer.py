"""Reading as OneTrainer: `<key>_out`, else `<key>`, under exactly its own names."""

from __future__ import annotations

from collections.abc import Sequence

from ..families import Family
from ..lora_modules import LoraModule
from ..stored import Stored
from .reading import REFUSED, Reading, Vectors, bundle_tensors, embedding, only_weights, refused, width

SAME_NAMES = ("qwen-image", "z-image", "sana", "hidream")  # families whose names it does not convert
ALONE = {"clip_l": "emp_params", "clip_h": "emp_params"}  # SD 1 and SD 2; the spelling is its own


def reads(file: Stored, widths: dict[str, int]) -> Reading:
    """One embedding, called as the configuration says (here: like the file).

    A model of one or two CLIP encoders needs all its names (else AttributeError), a larger one loads without
    those that are missing.
    """
    if not only_weights(file):
        return refused(REFUSED)
    vectors: Vectors = {}
    used = []
    for key, size in widths.items():
        name = ALONE.get(key, key) if len(widths) == 1 else key
        name = f"{name}_out" if f"{name}_out" in file.tensors else name
        if name in file.tensors and width(file.tensors[name]) == size:
            vectors[f"{key}_out" if name.endswith("_out") else key] = file.tensors[name]
            used.append(name)
    if not vectors or (len(vectors) < len(widths) and all(key.startswith("clip") for key in widths)):
        wanted = [ALONE.get(key, key) if len(widths) == 1 else key for key in widths]
        return refused(f"it needs {' and '.join(wanted)} of the model's widths")
    return embedding(file.stem, vectors, file.tensors, used)


def refuses_lora(file: Stored, family: Family, modules: Sequence[LoraModule], unused: Sequence[str]) -> str:
    """All names are converted by the rules for one layout, and a name without a rule stops that. With the pipeline's
    own prefix, and for diffusers' bare names, there is nothing to convert (modules/util/load_lora_util.py).
    """
    names = [name.removeprefix("base_model.model.").replace("lycoris_", "lora_unet_", 1) for name in file.tensors]
    part = family.denoiser_module

    def prefixed(*starts: str) -> bool:
        return any(name.startswith(starts) for name in names)

    strange = [name for name in unused if not name.startswith(("bundle_emb.", "_aux."))]
    flat, native = not prefixed("diffusion_model.") and prefixed("lora_"), prefixed("diffusion_model.")
    if flat and len(family.encoders) == 1 and prefixed(f"lora_{part}_"):
        strange += [name for name in names if name.startswith("lora_te1_")]  # its own layout has lora_te there
    if prefixed(f"{part}.") or not (flat or native or family.name not in SAME_NAMES):
        return ""
    if native and family.name in SAME_NAMES:
        strange = [name for name in strange if not name.startswith("diffusion_model.")]
    if not flat and not native and prefixed("transformer_blocks.", "single_transformer_blocks."):
        return ""
    return f"it refuses the whole LoRA because of {strange[0][:60]!r}" if strange else ""


def reads_lora(file: Stored, widths: dict[str, int]) -> Reading:
    """Embeddings are dropped silently, its own too: they must be loaded from their own files."""
    return Reading(dropped=bundle_tensors(file.tensors))
