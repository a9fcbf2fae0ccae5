"""A fine-tuned model as a diffusers folder, or as one checkpoint file in the layout of A1111, ComfyUI and kohya."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from ...converters import safetensors_file
from ...converters.disk import replace
from ...converters.families import Family
from ...converters.lora import PREDICTION, modelspec_prediction
from ...converters.tensor import RawTensor
from ..errors import StageError
from .layouts import Pieces, clip, joint_transformer, open_clip, unet, vae
from .tensors import plain, raw_tensors


def write_model_folder(
    pipe: Any, folder: Path, dtype: torch.dtype, *, tokenizers: Mapping[str, Mapping[str, bytes]] = MappingProxyType({})
) -> None:
    """Write the whole model; the folder appears when it is complete, and replaces an older one.

    Tokenizers and scheduler settings come from the pipeline; those in `tokenizers` (see `Model.tokenizer_files`) are
    the files that were loaded. Raises ConvertError when a value is too large for `dtype`.
    """
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        for name, component in pipe.components.items():
            if isinstance(component, torch.nn.Module):
                _model(component, part / name, dtype)
            elif hasattr(component, "get_vocab"):
                _tokenizer(component, part / name, tokenizers.get(name, {}))
            elif component is not None and name in pipe.config:  # modular pipelines make others of their class
                component.save_pretrained(part / name)
        pipe.save_config(part)
        if folder.exists():
            shutil.rmtree(folder)
        replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _model(module: Any, folder: Path, dtype: torch.dtype) -> None:
    folder.mkdir()
    state = plain(module.state_dict())
    if hasattr(module, "save_config"):
        module.save_config(folder)
        name = "diffusion_pytorch_model.safetensors"
    else:  # transformers
        config = copy.deepcopy(module.config)
        config.architectures = [type(module).__name__]
        config.dtype = torch.float32  # the default dtype of diffusers' models; others do not fit together
        config.save_pretrained(folder)
        name = "model.safetensors"
        if type(module).__name__ == "CLIPTextModel":  # the name that older versions of transformers read
            state = {f"text_model.{key.removeprefix('text_model.')}": tensors for key, tensors in state.items()}
    safetensors_file.write(folder / name, raw_tensors(state, dtype), {"format": "pt"})


def _tokenizer(tokenizer: Any, folder: Path, files: Mapping[str, bytes]) -> None:
    """The tokenizer's files as loaded; else those it writes, with the two that older transformers need."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    if files:
        return
    tokenizer.save_pretrained(folder)
    model = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]
    if model.get("type") == "BPE" and not (folder / "vocab.json").exists():
        (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), "utf-8", newline="\n")
        pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs]) + "\n", "utf-8", newline="\n")


LAYOUTS: dict[str, Callable[[Any], Pieces]] = {
    "unet": unet, "vae": vae, "clip": clip, "open_clip": open_clip, "joint_transformer": joint_transformer,
    # tied weights with all their names: not every loader ties them
    "named": lambda module: {name: (tensor,) for name, tensor in module.state_dict().items()},
}  # fmt: skip


def write_model_file(
    pipe: Any, family: Family, path: Path, dtype: torch.dtype, *, title: str,
    source: Mapping[str, str] = MappingProxyType({}),
) -> list[str]:  # fmt: skip
    """Write the whole model; each tensor is read again and compared before the file gets its name.

    `source` is the metadata of the file that was fine-tuned: what is not known better stays (author, licence, tags).

    Returns warnings about what programs ignore. Raises StageError when the family or a part of the model is not
    supported, ConvertError when a value is too large for `dtype`.
    """
    if not family.checkpoint:
        raise StageError(
            f"checkpoint files are not supported for {family.title}; set model = ['folder'] in the export stage"
        )
    tensors: dict[str, RawTensor] = {}
    unread = []
    for name, part in family.checkpoint.items():
        module = getattr(pipe, name, None)
        if module is not None:
            tensors |= raw_tensors(LAYOUTS[part.layout](module), dtype, part.prefix)
            if not part.own_projection and not _is_identity(module.text_projection.weight):
                unread.append(f"{path.name}: programs ignore the projection of {name}, which this model has")
    config = pipe.scheduler.config
    tensors |= {mark: RawTensor("F32", (0,), b"") for mark in _marks(config)}
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors_file.write(path, tensors, {**source, **_metadata(family, config, title)}, overwrite=True)
    return unread


def _is_identity(matrix: torch.Tensor) -> bool:
    return torch.equal(matrix, torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device))


def _marks(config: Any) -> list[str]:
    """Empty tensors whose names tell ComfyUI and Forge the prediction type of an SDXL model."""
    if config.get("prediction_type") != "v_prediction":
        return []
    return ["v_pred", "ztsnr"] if config.get("rescale_betas_zero_snr") else ["v_pred"]


def _metadata(family: Family, config: Any, title: str) -> dict[str, str]:
    predicted = modelspec_prediction(config.get("prediction_type") or "epsilon")
    return {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": title,
        "modelspec.architecture": family.modelspec,
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.resolution": f"{family.resolution}x{family.resolution}",
        **({PREDICTION: predicted} if family.objective == "diffusion" else {}),
        "modelspec.hash_sha256": "",  # set when the file is written
    }
