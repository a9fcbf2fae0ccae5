"""What a single-file checkpoint says of itself, without its weights: its family, and what it predicts.

Only .safetensors files have a header; of a .ckpt nothing but the .yaml beside it is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...converters import safetensors_file
from ...converters.errors import ConvertError
from ...converters.families import families
from ...converters.lora import PREDICTION
from ...converters.tensor import RawTensor

# The empty tensors by which ComfyUI and Forge tell v-prediction and zero terminal SNR of an SDXL model.
V_PREDICTION, ZERO_SNR = "v_pred", "ztsnr"
_SPELLINGS = {"v": "v_prediction", "v_prediction": "v_prediction", "epsilon": "epsilon", "eps": "epsilon"}
_YAML = re.compile(r"^\s*parameterization\s*:\s*[\"']?(\w+)", re.MULTILINE)  # of the original Stable Diffusion code
_LARGEST = 1 << 20  # bytes of a .yaml


@dataclass(frozen=True)
class Prediction:
    """What a model predicts, `epsilon` or `v_prediction`, whether with zero terminal SNR, and where that is stated."""

    kind: str
    zero_snr: bool
    source: str

    @property
    def changes(self) -> dict[str, Any]:
        """The same as keys of a scheduler's config."""
        zero_snr = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}  # as in `Diffusion`
        return {"prediction_type": self.kind} | (zero_snr if self.zero_snr else {})


def checkpoint_family(path: Path) -> str | None:
    """The name of a checkpoint's family, by the prefixes and widths of its tensors; None if they leave it open."""
    shapes = tensor_shapes(path)
    by_width = _unet_family(shapes)  # decides where a text encoder is absent, or has the names of another family's
    if by_width is not None:
        return by_width
    fitting = []
    for family in families().values():
        parts = [family.checkpoint[part].prefix for part in (family.denoiser_module, "text_encoder")
                 if part in family.checkpoint]  # fmt: skip
        if parts and all(any(name.startswith(prefix) for name in shapes) for prefix in parts):
            fitting.append(family.name)
    return fitting[0] if len(fitting) == 1 else None


def _unet_family(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The family of a UNet by the width of the text that it attends to; None for a width of no family."""
    widths = {shape[-1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight")}
    fitting = [
        family.name
        for family in families().values()
        if {family.cross_attention} == widths and any(part.layout == "unet" for part in family.checkpoint.values())
    ]
    return fitting[0] if len(fitting) == 1 else None


def stated_prediction(path: Path) -> Prediction | None:
    """What a checkpoint says that it predicts: its empty tensors, its metadata, or the .yaml beside it; else None."""
    names, metadata = _header(path)
    zero_snr = ZERO_SNR in names
    if V_PREDICTION in names:
        return Prediction("v_prediction", zero_snr, f"the tensor {V_PREDICTION} of {path.name}")
    stated = _SPELLINGS.get(metadata.get(PREDICTION, "").lower())
    if stated is not None:
        return Prediction(stated, zero_snr, f"{PREDICTION} in the metadata of {path.name}")
    config = path.with_suffix(".yaml")
    found = _YAML.search(_text(config))
    stated = _SPELLINGS.get(found[1].lower()) if found else None
    return None if stated is None else Prediction(stated, zero_snr, f"parameterization in {config.name}")


def prediction_of(path: Path | None, scheduler: Mapping[str, Any]) -> Prediction | None:
    """What a diffusion model predicts: what its file says, else the config of its scheduler. None if neither does."""
    stated = stated_prediction(path) if path is not None and path.is_file() else None
    kind = scheduler.get("prediction_type")
    if stated is not None or kind not in _SPELLINGS.values():
        return stated
    return Prediction(str(kind), bool(scheduler.get("rescale_betas_zero_snr")), "the config of its scheduler")


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a checkpoint's tensors by name; empty for a file without a header."""
    return {name: tensor.shape for name, tensor in _header(path)[0].items()}


def checkpoint_metadata(path: Path) -> dict[str, str]:
    """The metadata of a checkpoint; empty for a file that has none."""
    return dict(_header(path)[1])


def _header(path: Path) -> tuple[Mapping[str, RawTensor], Mapping[str, str]]:
    if path.suffix.lower() != ".safetensors":
        return {}, {}
    try:
        return safetensors_file.read(path, cached=0)
    except (ConvertError, OSError):
        return {}, {}  # loading the model reports what is wrong


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace") if path.stat().st_size <= _LARGEST else ""
    except OSError:
        return ""
