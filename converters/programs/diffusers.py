"""Reading as diffusers' `load_textual_inversion(file)`, with the text encoder whose width the vectors have."""

from __future__ import annotations

from ..slots import as_rows
from ..stored import Stored
from .reading import REFUSED, Reading, bundle_tensors, embedding, only_weights, refused, string_to_param, width


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
    return embedding(token, {fitting[0]: as_rows(tensor)}, tensors, tensors)


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
