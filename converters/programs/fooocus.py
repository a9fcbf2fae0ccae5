"""Reading as Fooocus: `load_embed` of ComfyUI before it knew bundles; a LoRA may have 12 tensors without a module."""

from __future__ import annotations

from collections.abc import Sequence

from ..families import Family
from ..lora_modules import LoraModule
from ..stored import Stored
from . import comfyui
from .forge import MOST_UNMATCHED
from .reading import Reading, bundle_tensors, refused


def reads(file: Stored, widths: dict[str, int]) -> Reading:
    """One embedding named after the file (ldm_patched/modules/sd1_clip.py), for SDXL alone."""
    return comfyui.reads(file, widths, bundles=False)


def reads_lora(file: Stored, widths: dict[str, int]) -> Reading:
    """Embeddings are never used, and their tensors count as tensors that match no module."""
    unmatched = bundle_tensors(file.tensors)
    return refused(_too_many(len(unmatched))) if len(unmatched) > MOST_UNMATCHED else Reading(dropped=unmatched)


def refuses_lora(file: Stored, family: Family, modules: Sequence[LoraModule], unused: Sequence[str]) -> str:
    """More than 12 tensors that match no module cost the whole LoRA (modules/core.py); PEFT's names and the magnitudes
    of DoRA never match.
    """
    loose = set(unused).union(name for name in file.tensors if _unread(name))
    if len(loose) > MOST_UNMATCHED:
        return _too_many(len(loose))
    if all(any(".lora_A" in key for key in module.keys) for module in modules):
        return "it does not look for tensors like lora_A and lora_B"
    return ""


def _unread(name: str) -> bool:
    return ".lora_A" in name or ".lora_B" in name or name.endswith("dora_scale")


def _too_many(count: int) -> str:
    return f"{count} tensors match no module, more than {MOST_UNMATCHED}: it skips the whole LoRA"
