"""A diffusers folder becomes a pipeline, each model in it by itself: only so the loaders tell which weights lack."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import torch

from ..errors import StageError
from ..recipe.model import ModelSpec
from .device import DTYPES
from .family import choose_family, width_of
from .find import GUARDS
from .json_file import read_json
from .received import check_model_folder
from .unreadable import reading, unreadable

_VARIANT = re.compile(r"(?:diffusion_pytorch_model|pytorch_model|model)\.([^.-]+)(?:-\d+-of-\d+)?\.(?:safetensors|bin)")
_LIBRARIES = ("diffusers", "transformers")


def read_folder(spec: ModelSpec, folder: Path) -> Any:
    """The pipeline of a diffusers folder, without safety checker.

    Raises StageError when a file is missing or broken, or when a model finds no value for one of its weights:
    the libraries would leave it random and say so in a log at most.
    """
    from diffusers import DiffusionPipeline

    if not (folder / "model_index.json").is_file():
        raise StageError(f"model.base = {spec.base!r}: the folder has no model_index.json, so it is no diffusers model")
    try:
        check_model_folder(folder)
    except StageError as error:
        raise unreadable(spec, error) from error
    with reading(lambda error: unreadable(spec, error)):
        index = read_json(folder / "model_index.json")
        kind = index.get("_class_name")
        choose_family(spec, kind, width_of(kind, lambda module: _config(folder / module / "config.json")))
        _check_variant(spec, folder)
        given = {name: None for name, value in index.items() if name in GUARDS or value == [None, None]}
        models = {name: _model(spec, folder / name, kind) for name, kind in part_kinds(index).items()}
        return DiffusionPipeline.from_pretrained(str(folder), local_files_only=True, **given, **models)


def _config(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def part_kinds(index: dict[str, Any]) -> dict[str, Any]:
    """The parts of a folder that have weights, by name, with their classes."""
    entries = {name: value for name, value in index.items() if isinstance(value, list) and name not in GUARDS}
    kinds = {}
    for name, (library, kind) in entries.items():
        found = getattr(importlib.import_module(library), kind, None) if library in _LIBRARIES else None
        if isinstance(found, type) and issubclass(found, torch.nn.Module):
            kinds[name] = found
    return kinds


def _model(spec: ModelSpec, folder: Path, kind: Any) -> Any:
    """One model of a folder with all its weights. A VAE is read in float32 for float16 runs, which may keep it so."""
    dtype = DTYPES[spec.dtype]
    if folder.name == "vae" and dtype == torch.float16:
        dtype = torch.float32
    with reading(lambda error: unreadable(spec, error, _hint(spec, folder))):
        model, told = kind.from_pretrained(
            str(folder), variant=spec.variant if spec.variant in variants_in(folder) else None, dtype=dtype,
            local_files_only=True, output_loading_info=True,
        )  # fmt: skip
    check_weights(spec, folder.name, model, told["missing_keys"])
    return model


def check_weights(spec: ModelSpec, name: str, model: Any, missing: Any) -> None:
    """StageError when weights of a model were not in its files."""
    if missing:
        lacks = f"{name} lacks {len(missing)} of its {len(model.state_dict())} weights ({min(missing)}, …)"
        raise unreadable(spec, f"{lacks}: its file is of another model, or names its weights in a way nobody knows")


def variants_in(folder: Path) -> set[str]:
    """Spellings of the weight files beside the plain one, for example fp16."""
    found = (_VARIANT.fullmatch(file.name) for file in folder.iterdir()) if folder.is_dir() else ()
    return {match[1] for match in found if match}


def _check_variant(spec: ModelSpec, folder: Path) -> None:
    have = {variant for part in folder.iterdir() for variant in variants_in(part)}
    if spec.variant is not None and spec.variant not in have:
        listed = ", ".join(sorted(have)) or "none"
        raise StageError(f"model.variant = {spec.variant!r}: {spec.base} has no such files (variants there: {listed})")


def _hint(spec: ModelSpec, folder: Path) -> str:
    have = variants_in(folder)
    place = f" (in {folder.name})"
    return f"{place}; set model.variant = '{min(have)}'" if have and spec.variant is None else place
