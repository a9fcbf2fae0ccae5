"""Well-known models of every family on the meta device, for estimates where a model's own files are not at hand.

`full_size.json` has their classes in diffusers and transformers, with what differs from the defaults of these classes.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...converters.families import Family, families
from ..errors import StageError
from ..recipe.model import ModelSpec
from .family import family_of, local_path
from .load import Model, quiet_libraries, skeleton, unweighted


@cache
def _configs() -> dict[str, dict[str, list[Any]]]:
    configs: dict[str, dict[str, list[Any]]] = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))
    return configs


def full_size(family: Family, spec: ModelSpec) -> Model:
    """The well-known model of a family in the dtype of `spec`, on the meta device: shapes without weights."""
    quiet_libraries()
    modules = {family.denoiser_module: build("denoisers", family.name)}
    modules |= {one.module: build("encoders", one.key) for one in family.encoders}
    if family.image_encoder is None:
        modules["vae"] = build("vaes", family.name)
    return unweighted(family, modules, spec)


def build(kind: str, name: str) -> nn.Module:
    """A module of `full_size.json`, on the meta device: of `denoisers` and `vaes` by family, of `encoders` by key."""
    import diffusers
    import transformers

    about, config = _configs()[kind][name]
    made = getattr(diffusers, about, None) or getattr(transformers, about)
    with torch.device("meta"):
        part = made.from_config(config) if hasattr(made, "load_config") else made(made.config_class(**config))
    module: nn.Module = part.requires_grad_(False)
    return module


def shapes_of(spec: ModelSpec) -> tuple[Model, bool]:
    """The model of a recipe on the meta device, and whether it is only the well-known one of its family.

    The network is not used. It is the well-known one for a hub id that is not in the local cache, and for a file
    without a configuration. StageError when the family is unknown, too.
    """
    path = local_path(spec)
    folder = path if path is not None and path.is_dir() else _cached_configs(spec)
    if folder is not None and folder.is_dir():
        try:
            return skeleton(spec if folder == path else replace(spec, base=str(folder))), False
        except StageError:
            if folder == path:
                raise
    family = family_of(spec)
    if family is None:
        raise StageError(f"{spec.base} is not at hand, and its family is unknown; set model.family, one of "
                         f"{', '.join(families())}")  # fmt: skip
    return full_size(family, spec), True


def _cached_configs(spec: ModelSpec) -> Path | None:
    """The folder with the configurations of a hub id, or of a single file by `model.config`, if it is at hand."""
    from huggingface_hub import snapshot_download

    single = local_path(spec) is not None
    name, revision = (spec.config, None) if single else (spec.base, spec.revision)
    if name is None or Path(name).is_absolute():
        return None if name is None else Path(name)
    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (OSError, ValueError):  # not in the local cache, or no name of the hub
        return None
