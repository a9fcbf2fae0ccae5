"""Is the model there, and which family is it? Reads small JSON files only, never weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ...converters.families import Family, families
from ..errors import StageError
from ..models.family import family_in, local_path
from ..models.received import check_model_folder
from ..recipe.load import CHECKPOINTS
from ..recipe.model import ModelSpec
from ..recipe.problem import Finding
from ..text import did_you_mean_path, nearest

BASE = ("model", "base")


def model_findings(spec: ModelSpec) -> Iterator[Finding]:
    """What is wrong with `[model]`, as far as it shows without loading it."""
    path = local_path(spec)
    if path is None:
        if _is_hub_id(spec.base):
            return
        hint = "; did you mean 'micro'?" if nearest(spec.base, ["micro"]) else ""
        yield Finding(BASE, f"'{spec.base}' is no file or folder, and no hub id (owner/name){hint}")
    elif not os.path.exists(path):
        yield Finding(BASE, f"{path} does not exist{did_you_mean_path(path)}")
    elif path.is_dir() and not (path / "model_index.json").is_file():
        yield Finding(BASE, f"{path} has no model_index.json, so it is no diffusers folder")
    elif path.is_file():
        yield from _checkpoint(spec, path)
    elif not path.is_dir():
        yield Finding(BASE, f"{path} is no regular file and no folder")
    else:
        try:
            check_model_folder(path)
            family_in(spec, path)
        except StageError as error:
            yield Finding(("model", "family" if spec.family else "base"), str(error))


def layer_findings(spec: ModelSpec, family: Family | None) -> Iterator[Finding]:
    """What is wrong with the layer of the text encoder that is to be read."""
    if spec.clip_skip > 1 and family is not None and not family.clip_skip:
        yield Finding(("model", "clip_skip"), f"{family.title} has one layer that is read; leave clip_skip out")


def _checkpoint(spec: ModelSpec, path: Path) -> Iterator[Finding]:
    if path.suffix.lower() not in CHECKPOINTS:
        yield Finding(BASE, f"{path} is no checkpoint; one ends in {' or '.join(CHECKPOINTS)}")
    if spec.family is None:
        yield Finding(BASE, f"a single file does not tell its family; add family = one of {', '.join(families())}")
    if spec.config is None:
        text = "without config = a diffusers folder of the same family, the hub is asked for layout and tokenizers"
        yield Finding(BASE, text, "warning")
    elif Path(spec.config).is_absolute():
        try:
            if not Path(spec.config).is_dir():
                raise StageError(f"{spec.config} is no folder")
            check_model_folder(Path(spec.config))
        except (StageError, OSError) as error:
            yield Finding(("model", "config"), str(error))


def _is_hub_id(text: str) -> bool:
    owner, slash, name = text.partition("/")
    plain = (owner + name).replace("-", "").replace("_", "").replace(".", "")
    return bool(slash and owner and name) and plain.isascii() and plain.isalnum()
