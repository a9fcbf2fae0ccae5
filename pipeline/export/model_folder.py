"""A fine-tuned model as a diffusers folder, which `from_pretrained` of diffusers and many programs load."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from ...converters import safetensors_file
from ...converters.disk import replace
from .tensors import plain, raw_tensors


def write_model_folder(
    pipe: Any, folder: Path, dtype: torch.dtype, *, tokenizers: Mapping[str, Mapping[str, bytes]] = MappingProxyType({})
) -> None:
    """Write the whole model; the folder appears when all of it is there, in the place of an older one.

    Tokenizers and scheduler settings come from the pipeline; those in `tokenizers` (see `Model.tokenizer_files`) are
    the very files that were loaded. Raises ConvertError when a value is too large for `dtype`.
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
            elif component is not None:
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
        config.dtype = torch.float32  # as diffusers' models come up where no type is asked for, else they do not fit
        config.save_pretrained(folder)
        name = "model.safetensors"
        if type(module).__name__ == "CLIPTextModel":  # the name that older versions of transformers look for
            state = {f"text_model.{key.removeprefix('text_model.')}": tensors for key, tensors in state.items()}
    safetensors_file.write(folder / name, raw_tensors(state, dtype), {"format": "pt"})


def _tokenizer(tokenizer: Any, folder: Path, files: Mapping[str, bytes]) -> None:
    """The tokenizer's files as given; without any those it writes, with the two that older transformers need."""
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
