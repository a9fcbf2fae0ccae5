"""A model as shapes alone: every module on torch's meta device, from the model's small files. No weight is read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from ..recipe.model import ModelSpec
from ..words.injection import Encoder
from .device import DTYPES
from .folder import part_kinds
from .json_file import read_json
from .load import Model, quiet_libraries
from .tokenizers import config_folder, stated_family
from .unreadable import reading, unreadable


def skeleton(spec: ModelSpec) -> Model:
    """The model of a recipe without values; its modules say how many there are, and take LoRAs.

    Raises StageError where the small files do not tell.
    """
    quiet_libraries()
    family, folder = stated_family(spec), config_folder(spec)
    with reading(lambda error: unreadable(spec, error)):
        index = read_json(folder / "model_index.json")
        modules = {name: _module(kind, folder / name) for name, kind in part_kinds(index).items()}
        for name in (family.denoiser_module, "vae"):
            if name not in modules:
                raise ValueError(f"model_index.json names no {name}")
    lacks = [name for name in (family.denoiser_module, "vae", "text_encoder") if name not in modules]
    if lacks:
        raise unreadable(spec, f"{folder / 'model_index.json'} names no {lacks[0]}")
    pipe = SimpleNamespace(**modules, components=modules)
    encoders = tuple(
        Encoder(about.key, about.module, about.tokenizer, modules[about.module], None, about.width)
        for about in family.encoders
        if about.module in modules
    )
    return Model(pipe, family, encoders, None, DTYPES[spec.dtype], torch.device("meta"))


def _module(kind: Any, folder: Any) -> torch.nn.Module:
    with torch.device("meta"):
        if hasattr(kind, "load_config"):  # diffusers
            made = kind.from_config(read_json(folder / "config.json"))
        else:
            made = kind(kind.config_class.from_pretrained(str(folder), local_files_only=True))
    module: torch.nn.Module = made.requires_grad_(False)
    return module
