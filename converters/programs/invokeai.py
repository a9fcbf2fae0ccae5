"""Reading as InvokeAI: an import that guesses the base model from a width, and a loader for four spellings."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from ..families import Family
from ..lora_modules import LoraModule
from ..stored import Stored
from .invokeai_loras import not_imported
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

MOST = 10  # tensors; a file with as many is no embedding to the import

_FACTORS = re.compile(r"\.(lokr|hada)_")  # LyCORIS' kinds
# Tensors by which the import tells a width; of LoKr only whole factors, for it looks for the others under wrong names.
_WIDTH = r"\.(lora_down\.weight|hada_w[12]_b|diff|lokr_w2)\n"


def reads(file: Stored, widths: dict[str, int]) -> Reading:
    """One embedding named after the file, if its base is SD 1, SD 2 or SDXL and fits the model.

    Imitates configs/textual_inversion.py and backend/textual_inversion.py: a file with none of the known names
    is identified by its FIRST dimension, so a 2-D `{token: vectors}` is refused.
    """
    if why := misnamed(file, (".ckpt", ".pt", ".pth", ".bin")) or ("" if only_weights(file) else REFUSED):
        return refused(why)
    tensors = file.tensors
    if not tensors:
        return refused("there is no tensor")
    entries = string_to_param(tensors)
    if entries and any(key.startswith("string_to_token") for key in (*file.metadata, *tensors)):
        base = width(next(iter(entries.values())))
    elif entries:
        return refused("string_to_param without string_to_token is not identified")
    elif "emb_params" in tensors:
        base = width(tensors["emb_params"])
    elif "clip_g" in tensors:
        base = width(tensors["clip_g"])
    elif len(tensors) < MOST:
        base = next(iter(tensors.values())).shape[0] if next(iter(tensors.values())).shape else 0
    else:
        return refused("not identified as an embedding")
    wanted = widths["clip_g"] if widths.keys() == {"clip_l", "clip_g"} else next(iter(widths.values()))
    if base != wanted or len(widths) > 2:
        return refused(f"it reads {base} as the width of the text encoder; the file cannot be imported")
    return _loaded(file, entries, widths)


def _loaded(file: Stored, entries: Vectors, widths: dict[str, int]) -> Reading:
    tensors, only = file.tensors, next(iter(widths))
    if entries:
        return embedding(file.stem, {only: next(iter(entries.values()))}, tensors, tensors)
    if "emb_params" in tensors:
        return embedding(file.stem, {only: tensors["emb_params"]}, tensors, ("emb_params",))
    if "clip_g" in tensors and "clip_l" in tensors and len(widths) == 2:
        if widths.keys() != {"clip_l", "clip_g"}:
            return refused("it takes the file for an SDXL embedding")
        return embedding(file.stem, {key: tensors[key] for key in widths}, tensors, widths)
    if len(widths) == 2:
        return refused("an SDXL embedding needs both clip_l and clip_g")
    first = next(iter(tensors))
    return embedding(file.stem, {only: tensors[first]}, tensors, (first,))


def refuses_lora(file: Stored, family: Family, modules: Sequence[LoraModule], unused: Sequence[str]) -> str:
    """The import must find the base model, and for SDXL all names must have kohya's prefixes. Modules that are not in
    the model are skipped (backend/patches/layer_patcher.py).
    """
    if family.denoiser_module != "unet":
        return not_imported(file, family) or _not_converted(file, family, unused)
    if not _identified(file, family):
        return "its import finds no base model: no to_k or to_v of cross-attention (of LoKr: with whole factors)"
    strange = [name for name in unused if not name.startswith(("bundle_emb.", "lora_unet_", "lora_te1_", "lora_te2_"))]
    single = len(family.encoders) == 1
    return "" if single or not strange else f"it refuses the whole LoRA because of {strange[0][:60]!r}"


def _not_converted(file: Stored, family: Family, unused: Sequence[str]) -> str:
    """What its conversion of FLUX stops at, which wants q, k and v of diffusers' layers together."""
    found = None
    if re.search(r"\ndiffusion_model\.(double|single)_blocks\.", file.text) and not _FACTORS.search(file.text):
        found = re.search(r"\n(diffusion_model\.\S+\.(alpha|dora_scale))\n", file.text)
    if (
        found is None
        and family.denoiser_kind == "flux_transformer"
        and re.search(r"\n\S*transformer_blocks[._]", file.text)
    ):
        layers = Counter(
            re.findall(r"\n(\S*[._]?transformer_blocks[._]\d+[._]attn[._]\w+?)_[qkv]\S*(?:up|B)\.weight", file.text)
        )
        part = next((layer for layer, count in layers.items() if count < 3 and "single" not in layer), None)
        if part or unused:
            return f"it stops at {(part or unused[0])[:60]!r}"
    return f"it stops at {found[1][:60]!r}" if found else ""


def _identified(file: Stored, family: Family) -> bool:
    """Whether the import finds a width in the cross-attention or the text encoders (lora_token_vector_length), or, for
    a U-Net with two text encoders, a deep transformer block.
    """
    single = len(family.encoders) == 1
    text = {
        te for te in ("lora_te1_", "lora_te2_", "lora_te_") if re.search(rf"\n{te}.*_self_attn_\w+{_WIDTH}", file.text)
    }
    if "lora_te_" in text or {"lora_te1_", "lora_te2_"} <= text:
        return True
    if re.search(rf"\nlora_unet_(.*_attn2_to_[kv]{_WIDTH}|.*time_emb_proj\.lora_down)", file.text):
        return True
    return not single and re.search(r"\nlora_unet_.*_transformer_blocks_([2-9]|1\d)_", file.text) is not None


def reads_lora(file: Stored, widths: dict[str, int]) -> Reading:
    """Tensors of embeddings are dropped on loading; a FLUX LoRA with some is not identified on import (since 6.0)."""
    embeddings = bundle_tensors(file.tensors)
    if embeddings and widths.keys() == {"clip_l", "t5"}:
        return refused("a FLUX LoRA with embeddings is not identified and cannot be imported")
    return Reading(dropped=embeddings)
