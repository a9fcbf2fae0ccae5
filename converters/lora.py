"""LoRA files: the metadata by which programs know them, and writing one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from . import safetensors_file
from .families import Family
from .safetensors_bytes import HASHES, LEGACY_HASH
from .tensor import RawTensor


def lora_metadata(
    family: Family, *, title: str, rank: int | str, alpha: float | str, dora: bool = False
) -> dict[str, str]:
    """What A1111, Forge, SD.Next and SwarmUI tell a LoRA's model by, in kohya's and ModelSpec's fields.

    `rank` and `alpha` are `Dynamic` where they are not the same for all modules.

    Nothing in it changes between two runs; add dates and the like yourself. Hashes are put in by `write_lora`.
    """
    return {
        "ss_base_model_version": family.base_model_version,
        "ss_v2": str(family.base_model_version.startswith("sd_v2")),
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(alpha),
        **({"ss_network_args": '{"dora_wd": "True"}'} if dora else {}),
        "ss_output_name": title,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": title,
        "modelspec.architecture": f"{family.modelspec}/lora",
        "modelspec.resolution": f"{family.resolution}x{family.resolution}",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
    }


def write_lora(
    path: Path | str, tensors: Mapping[str, RawTensor], metadata: Mapping[str, str], *, overwrite: bool = False
) -> None:
    """Write a LoRA (with embeddings in it, if `bundle.tensors_of` made the tensors) with true hashes of its data."""
    fresh = dict.fromkeys((*HASHES, LEGACY_HASH), "")
    safetensors_file.write(path, tensors, {**metadata, **fresh}, overwrite=overwrite)
