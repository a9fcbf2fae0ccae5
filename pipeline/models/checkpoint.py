"""A single-file checkpoint becomes a pipeline, with configs and tokenizers from a diffusers folder or the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ...converters.families import families
from ..errors import StageError
from ..recipe.build import CHECKPOINTS
from ..recipe.model import ModelSpec
from .device import DTYPES
from .folder import check_weights
from .received import check_model_folder
from .unreadable import reading, unreadable


def read_checkpoint(spec: ModelSpec, path: Path) -> Any:
    """The pipeline of a .safetensors or .ckpt file, without safety checker.

    Raises StageError when the file is none, lacks weights, its family is not said, or its configs cannot be had.
    """
    import diffusers
    from huggingface_hub.errors import LocalEntryNotFoundError

    if path.suffix.lower() not in CHECKPOINTS:
        raise StageError(f"model.base = {spec.base!r}: a checkpoint ends in {' or '.join(CHECKPOINTS)}")
    if spec.family is None:
        known = ", ".join(families())
        raise StageError(f"model.base = {spec.base!r} is a single file: say model.family, one of {known}")
    loader = getattr(diffusers, families()[spec.family].pipeline)
    dtype = DTYPES[spec.dtype]
    options = {"config": spec.config, "local_files_only": spec.config is not None and Path(spec.config).is_dir()}
    if options["local_files_only"]:
        check_model_folder(Path(str(spec.config)))

    def told(error: Exception) -> StageError:
        if isinstance(error, NotImplementedError):  # torch, asked to place a weight that has no value
            return unreadable(spec, "the file lacks weights of the denoiser or the VAE, so it is of another model")
        away = isinstance(error, LocalEntryNotFoundError)
        return unreadable(spec, error, "; set model.config to a diffusers folder of the same family" if away else "")

    with reading(told):
        given = {}
        if dtype == torch.float16:  # the run may keep it in float32, see folder.py
            given["vae"] = diffusers.AutoencoderKL.from_single_file(
                str(path), dtype=torch.float32, **options | ({"subfolder": "vae"} if spec.config else {})
            )
        pipe = loader.from_single_file(str(path), dtype=dtype, safety_checker=None, **options, **given)
        for name, part in pipe.components.items():
            if isinstance(part, torch.nn.Module):
                check_weights(spec, name, part, [key for key, value in part.state_dict().items() if value.is_meta])
    return pipe
