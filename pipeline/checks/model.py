"""Checks of the model: does it exist, and which family is it? Reads small JSON files only, no weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ...converters.families import Family, families
from ..errors import StageError
from ..models.checkpoint import checkpoint_family
from ..models.family import denoiser_config, family_in, local_path, no_single_file
from ..models.index import INDEX, has_index
from ..models.modular import package_problem
from ..models.received import check_model_folder
from ..recipe.load import CHECKPOINTS
from ..recipe.model import ModelSpec
from ..recipe.problem import Finding
from ..text import did_you_mean_path, nearest

BASE = ("model", "base")


def model_findings(spec: ModelSpec) -> Iterator[Finding]:
    """Checks of `[model]` without loading it."""
    path = local_path(spec)
    if path is None:
        if _is_hub_id(spec.base):
            named = families().get(spec.family or "")
            if named is not None and (problem := package_problem(named, None)):
                yield Finding(BASE, problem, "warning")
            return
        hint = "; did you mean 'micro'?" if nearest(spec.base, ["micro"]) else ""
        yield Finding(BASE, f"'{spec.base}' is not a file, a folder or a hub id (owner/name){hint}")
    elif not os.path.exists(path):
        yield Finding(BASE, f"{path} does not exist{did_you_mean_path(path)}")
    elif path.is_dir() and not has_index(path):
        yield Finding(BASE, f"{path} is not a diffusers folder: no {INDEX}")
    elif path.is_file():
        yield from _checkpoint(spec, path)
    elif not path.is_dir():
        yield Finding(BASE, f"{path} is neither a regular file nor a folder")
    else:
        try:
            check_model_folder(path)
            family = family_in(spec, path)
            if problem := package_problem(family, denoiser_config(family, path)):
                yield Finding(BASE, problem)
        except StageError as error:
            yield Finding(("model", "family" if spec.family else "base"), str(error))


def family_findings(spec: ModelSpec, family: Family | None) -> Iterator[Finding]:
    """Checks of clip_skip, and of a dtype in which a text encoder overflows."""
    overflowing = [one.key for one in family.encoders if not one.float16] if family is not None else []
    if spec.dtype == "float16" and overflowing:
        yield Finding(("model", "dtype"), f"{overflowing[0]} overflows in float16; use bfloat16")
    if spec.clip_skip > 1 and family is not None and not family.clip_skip:
        yield Finding(("model", "clip_skip"), f"clip_skip is not supported for {family.title}; remove it")


def _checkpoint(spec: ModelSpec, path: Path) -> Iterator[Finding]:
    if path.suffix.lower() not in CHECKPOINTS:
        yield Finding(BASE, f"{path} is not a checkpoint ({' or '.join(CHECKPOINTS)})")
    family = spec.family or checkpoint_family(path)
    if family is None:
        known = ", ".join(families())
        yield Finding(BASE, f"the tensors of {path.name} do not tell its family: set family = one of {known}")
    elif spec.family in families() and (why := no_single_file(families()[spec.family])):
        yield Finding(BASE, why)
        return
    if spec.config is None:
        text = (
            "without config, tokenizers and configuration are downloaded; set config = a diffusers folder of the family"
        )
        yield Finding(BASE, text, "warning")
    elif Path(spec.config).is_absolute():
        try:
            if not Path(spec.config).is_dir():
                raise StageError(f"{spec.config} is not a folder")
            check_model_folder(Path(spec.config))
        except (StageError, OSError) as error:
            yield Finding(("model", "config"), str(error))


def _is_hub_id(text: str) -> bool:
    owner, slash, name = text.partition("/")
    plain = (owner + name).replace("-", "").replace("_", "").replace(".", "")
    return bool(slash and owner and name) and plain.isascii() and plain.isalnum()
