"""Reading as Forge Neo: embeddings by Forge's code; a LoRA may have as many tensors without a module as with one."""

from __future__ import annotations

from collections.abc import Sequence

from ..families import Family
from ..lora_modules import LoraModule
from ..stored import Stored
from . import forge
from .reading import REFUSED, Reading, bundle_tensors, only_weights, refused


def reads(file: Stored, widths: dict[str, int]) -> Reading:
    """As Forge, with a torch that runs no code of a pickle (backend/text_processing/textual_inversion.py)."""
    return forge.reads(file, widths) if only_weights(file) else refused(REFUSED)


def refuses_lora(file: Stored, family: Family, modules: Sequence[LoraModule], unused: Sequence[str]) -> str:
    """More tensors that match no module than tensors that do cost the whole LoRA (sd_forge_lora/networks.py)."""
    return _too_many(len(unused), len(file.tensors))


def reads_lora(file: Stored, widths: dict[str, int]) -> Reading:
    """Embeddings are never used, and their tensors count as tensors that match no module."""
    unmatched = bundle_tensors(file.tensors)
    why = _too_many(len(unmatched), len(file.tensors))
    return refused(why) if why else Reading(dropped=unmatched)


def _too_many(unmatched: int, count: int) -> str:
    if 2 * unmatched <= count:
        return ""
    return f"{unmatched} of {count} tensors match no module, more than half: it skips the whole LoRA"
