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

_NO_ATTENTION = r"lora_transformer_(single_)?transformer_blocks_\d+_(?!attn_)"  # lora_conversion_utils.py
WHOLE = ("Krea2Pipeline", "Lumina2Pipeline")  # those that stop at a name of the original code without a rule
FIRST_ONLY = "only the first vector is used: transformers 5 does not expand tokens with upper-case letters"


def reads(file: Stored, widths: dict[str, int]) -> Reading:
    """One embedding called like the tensor (or `name` beside string_to_param); clip_l and clip_g need two calls by
    hand.
    """
    if not only_weights(file):
        return refused(REFUSED)
    if file.container == "pickle" and (why := misnamed(file)):
        return refused(why)
    if file.root in ("list", "tensor"):
        return refused(f"a {file.root} is no dict: its tensors must be passed by hand, with token=")
    tensors, entries = file.tensors, string_to_param(file.tensors)
    others = file.metadata if file.container == "pickle" else {}
    if len(tensors) + len(others) == 1 and not entries:
        token, tensor = next(iter(tensors.items()))
    elif "*" in entries and "name" in file.metadata:
        token, tensor = file.metadata["name"], entries["*"]
    else:
        return refused("more than one tensor: each must be passed by hand, with token= and its text encoder")
    if len(token) == 1 and "!" <= token <= "~":
        return refused(f"{token!r} is already in the vocabulary; pass another with token=")
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
        if kohya and len(flat) < len(file.tensors):
            return "tensors of embeddings keep it from converting kohya's layout, and it applies nothing"
        strange = [name for name in flat if "lora" not in name]
        if not kohya and strange:
            return f"it refuses the whole LoRA because {strange[0][:60]!r} does not contain 'lora'"
    t5 = [module.name for module in modules if module.name.startswith("text_encoder.")]
    if t5 and family.pipeline == "ChromaPipeline":
        return f"it takes T5 for CLIP and fails at {t5[0][:60]!r}"
    if missing := _missing_of_blocks(file) or _missing_of_lumina(file, family):
        return f"it converts this layout of the model only with all modules of each block; {missing!r} is missing"
    if unused and family.pipeline in WHOLE and re.search(r"\n(diffusion_model|base_model\.model)\.", file.text):
        return f"it converts all names of this layout, and stops at {unused[0][:60]!r}"
    strange = [module.name for module in modules if re.match(_NO_ATTENTION, module.name)]
    if strange:
        return f"it converts the attention of OneTrainer's FLUX layout alone, and fails at {strange[0][:60]!r}"
    return ""


def _missing_of_blocks(file: Stored) -> str:
    """A tensor that its conversion of Wan's LoRAs from kohya's layout looks for in vain (or one that it does not)."""
    if not re.search(r"\nlora_unet_blocks_\d+_self_attn_", file.text):
        return ""
    count = len(set(re.findall(r"\nlora_unet_blocks_(\d+)_", file.text)))
    layers = [f"{kind}_attn_{part}" for kind in ("self", "cross") for part in "qkvo"] + ["ffn_0", "ffn_2"]
    wanted = [
        f"lora_unet_blocks_{block}_{layer}.{part}"
        for block in range(count)
        for layer in layers
        for part in ("lora_down.weight", "lora_up.weight", "alpha")
    ]
    return next((name for name in wanted if name not in file.tensors), "")


def _missing_of_lumina(file: Stored, family: Family) -> str:
    """The same for Lumina 2's LoRAs with ComfyUI's names."""
    if family.pipeline != "Lumina2Pipeline":
        return ""
    blocks = set(
        re.findall(
            r"\ndiffusion_model\.((?:layers|(?:noise|context)_refiner)\.\d+)\.attention\.(?:qkv|out)\.", file.text
        )
    )
    layers = ["attention.qkv", "attention.out", *(f"feed_forward.w{one}" for one in "123"), "adaLN_modulation.1"]
    wanted = [
        f"diffusion_model.{block}.{layer}.lora_{one}.weight"
        for block in sorted(blocks)
        for layer in (layers[:-1] if block.startswith("context") else layers)
        for one in "AB"
    ]
    return next((name for name in wanted if name not in file.tensors), "")


def reads_lora(file: Stored, widths: dict[str, int]) -> Reading:
    """`load_lora_weights` refuses a file in which a tensor's name has no `lora`; FLUX alone leaves such tensors out."""
    embeddings = bundle_tensors(file.tensors)
    converted = any(name.startswith(("lora_unet_", "diffusion_model.")) for name in file.tensors)
    strange = [name for name in file.tensors if "lora" not in name and not (converted and name.endswith(".alpha"))]
    if "t5" in widths and widths.keys() <= {"clip_l", "t5"}:
        if embeddings and any(name.startswith("lora_transformer_") for name in file.tensors):
            return refused("OneTrainer's FLUX layout with embeddings in it fails an assertion")
        return Reading(dropped=embeddings)
    if strange:
        return refused(f"the whole LoRA is refused, because no 'lora' is in the name {strange[0][:60]!r}")
    return Reading(dropped=embeddings)
