"""Reading as diffusers' `load_textual_inversion(file)`, with the text encoder whose width the vectors have."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace

from ..families import Family
from ..lora_modules import LoraModule
from ..slots import as_rows
from ..stored import Stored
from ..tensor import RawTensor
from .reading import REFUSED, Reading, bundle_tensors, embedding, only_weights, refused, string_to_param, width

_NO_ATTENTION = r"lora_transformer_(single_)?transformer_blocks_\d+_(?!attn_)"  # lora_conversion_utils.py
FIRST_ONLY = "only the first vector is used: transformers 5 does not expand tokens with upper-case letters"


def reads(file: Stored, widths: dict[str, int]) -> Reading:
    """One embedding called like the tensor (or `name` beside string_to_param); clip_l and clip_g need two calls by
    hand.
    """
    if not only_weights(file):
        return refused(REFUSED)
    tensors, entries = file.tensors, string_to_param(file.tensors)
    if file.root == "tensor":
        token, tensor = file.stem, next(iter(tensors.values()))
    elif len(tensors) == 1 and not entries:
        token, tensor = next(iter(tensors.items()))
    elif "*" in entries and "name" in file.metadata:
        token, tensor = file.metadata["name"], entries["*"]
    else:
        return refused("more than one tensor: each must be passed by hand, with token= and its text encoder")
    fitting = [key for key, size in widths.items() if size == width(tensor)]
    if not fitting:
        return refused(f"no text encoder of the model takes vectors {width(tensor)} wide")
    found = embedding(token, {fitting[0]: as_rows(tensor)}, tensors, tensors)
    return found if _expands(token, fitting[0], as_rows(tensor)) else replace(found, notes=(FIRST_ONLY,))


def _expands(token: str, encoder: str, rows: RawTensor) -> bool:
    """Whether `maybe_convert_prompt` replaces the token by the tokens of all vectors.

    transformers 5 looks for added tokens in a prompt that CLIP's tokenizer has put in lower case, and gives them back
    in lower case, so that a token with upper-case letters is not found among the added ones.
    """
    normal = unicodedata.normalize("NFC", token).lower()
    return len(rows.shape) != 2 or rows.shape[0] < 2 or not encoder.startswith("clip") or token == normal


def refuses_lora(file: Stored, family: Family, modules: Sequence[LoraModule], unused: Sequence[str]) -> str:
    """Kohya's layout is converted only as a whole; otherwise every name must contain `lora`."""
    flat = [name for name in file.tensors if not name.startswith("bundle_emb.")]
    kohya = all(name.startswith(("lora_te", "lora_unet_")) for name in flat)
    if family.denoiser_module == "unet":
        if kohya and any(name.startswith("lora_unet_input_blocks") for name in flat) and len(family.encoders) == 1:
            return "it converts Stability's names of blocks for SDXL alone"
        strange = [name for name in flat if "lora" not in name]
        if not kohya and strange:
            return f"it refuses the whole LoRA because {strange[0][:60]!r} does not contain 'lora'"
    t5 = [module.name for module in modules if module.name.startswith("text_encoder.")]
    if t5 and family.pipeline == "ChromaPipeline":
        return f"it takes T5 for CLIP and fails at {t5[0][:60]!r}"
    strange = [module.name for module in modules if re.match(_NO_ATTENTION, module.name)]
    if strange:
        return f"it converts the attention of OneTrainer's FLUX layout alone, and fails at {strange[0][:60]!r}"
    return ""


def reads_lora(file: Stored, widths: dict[str, int]) -> Reading:
    """`load_lora_weights` refuses a file in which a tensor's name has no `lora`; FLUX alone leaves such tensors out."""
    embeddings = bundle_tensors(file.tensors)
    strange = [name for name in file.tensors if "lora" not in name]
    if widths.keys() == {"clip_l", "t5"}:
        if embeddings and any(name.startswith("lora_transformer_") for name in file.tensors):
            return refused("OneTrainer's FLUX layout with embeddings in it fails an assertion")
        return Reading(dropped=embeddings)
    if strange and all(name.startswith(("lora_", "bundle_emb.")) for name in file.tensors) and not embeddings:
        strange = []  # kohya's .alpha: converted before the names are looked at
    if strange:
        return refused(f"the whole LoRA is refused, because no 'lora' is in the name {strange[0][:60]!r}")
    return Reading(dropped=embeddings)
