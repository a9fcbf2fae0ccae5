"""A denoiser from a file of its own: `model.denoiser`, a .safetensors or GGUF file, or a folder."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ...converters.families import Family
from ..errors import StageError
from ..recipe.defaults import NO_GGUF
from ..recipe.model import ModelSpec
from .quantized import QuantizedLinear
from .received import check_parts, load_errors, one_line


def read_denoiser(spec: ModelSpec, family: Family, kind: Any, config: Path, dtype: torch.dtype) -> Any:
    """The denoiser of `model.denoiser`, of class `kind`; `config` is a diffusers folder of the same model.

    Weights of a GGUF file stay packed (ggml's formats; diffusers' reader and names). Raises StageError when it cannot
    be read or lacks weights.
    """
    path = Path(spec.denoiser or "")
    gguf, options = path.suffix.lower() == ".gguf", {}
    if gguf and find_spec("gguf") is None:
        raise StageError(f"model.denoiser: {NO_GGUF}")

    def as_stage_error(error: Exception) -> StageError:
        return StageError(f"model.denoiser = {str(path)!r} cannot be loaded: {one_line(error)}")

    with load_errors(as_stage_error):
        if path.is_dir():
            folder = path if (path / "config.json").is_file() else path / family.denoiser_module
            if not (folder / "config.json").is_file():
                raise ValueError(f"it has no config.json, and none in {family.denoiser_module}")
            check_parts(folder.parent, [folder.name])
            made, info = kind.from_pretrained(str(folder), dtype=dtype, local_files_only=True, output_loading_info=True)
            _require_all(made, sorted(info["missing_keys"]))
            return made
        if not hasattr(kind, "from_single_file"):
            raise ValueError(f"{kind.__name__} reads no single files; use a folder")
        if gguf:
            from diffusers import GGUFQuantizationConfig

            options["quantization_config"] = GGUFQuantizationConfig(compute_dtype=dtype)
        made = kind.from_single_file(
            str(path),
            config=str(config),
            subfolder=family.denoiser_module,
            dtype=dtype,
            local_files_only=True,
            **options,
        )
        _require_all(made, sorted(key for key, value in made.state_dict().items() if value.is_meta))
    for parent in list(made.modules()) if gguf else ():
        for name, layer in parent.named_children():
            if type(layer).__name__ == "GGUFLinear":
                setattr(parent, name, QuantizedLinear.from_gguf(layer))
    return made


def _require_all(made: Any, lacks: list[str]) -> None:
    if lacks:
        raise ValueError(f"it lacks {len(lacks)} of its {len(made.state_dict())} weights ({lacks[0]}, …)")
