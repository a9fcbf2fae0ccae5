"""A fine-tuned model as one checkpoint file in the layout that A1111, Forge, ComfyUI and kohya's scripts know."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ...converters import safetensors_file
from ...converters.families import Family
from ...converters.tensor import RawTensor
from ..errors import StageError
from .sd3_layout import joint_transformer
from .sgm_layout import Pieces, clip, open_clip, unet, vae
from .tensors import raw_tensors

LAYOUTS: dict[str, Callable[[Any], Pieces]] = {
    "unet": unet, "vae": vae, "clip": clip, "open_clip": open_clip, "joint_transformer": joint_transformer,
    # tied weights under all their names: not every loader ties them
    "named": lambda module: {name: (tensor,) for name, tensor in module.state_dict().items()},
}  # fmt: skip


def write_model_file(pipe: Any, family: Family, path: Path, dtype: torch.dtype, *, title: str) -> list[str]:
    """Write the whole model; each tensor is read back and compared before the file gets its name.

    Returns what programs will not read of it. Raises StageError when the family has no such layout or a part of the
    model no place in it, ConvertError when a value is too large for `dtype`.
    """
    if not family.checkpoint:
        raise StageError(f"no checkpoint file is known for {family.title}; export models = ['folder']")
    tensors: dict[str, RawTensor] = {}
    unread = []
    for name, part in family.checkpoint.items():
        module = getattr(pipe, name, None)
        if module is not None:
            tensors |= raw_tensors(LAYOUTS[part.layout](module), dtype, part.prefix)
            if not part.own_projection and not _is_identity(module.text_projection.weight):
                unread.append(f"{path.name}: programs take the projection of {name} for none, the model has one")
    config = pipe.scheduler.config
    tensors |= {mark: RawTensor("F32", (0,), b"") for mark in _marks(config)}
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors_file.write(path, tensors, _metadata(family, config, title))
    return unread


def _is_identity(matrix: torch.Tensor) -> bool:
    return torch.equal(matrix, torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device))


def _marks(config: Any) -> list[str]:
    """Empty tensors by whose names ComfyUI and Forge know what an SDXL model predicts."""
    if config.get("prediction_type") != "v_prediction":
        return []
    return ["v_pred", "ztsnr"] if config.get("rescale_betas_zero_snr") else ["v_pred"]


def _metadata(family: Family, config: Any, title: str) -> dict[str, str]:
    predicted = {"v_prediction": "v"}.get(config.get("prediction_type"), "epsilon")
    return {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": title,
        "modelspec.architecture": family.modelspec,
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.resolution": f"{family.resolution}x{family.resolution}",
        **({"modelspec.prediction_type": predicted} if family.objective == "diffusion" else {}),
        "modelspec.hash_sha256": "",  # put in as the file is written
    }
