"""What a model says of itself on this machine: where it lies, its family, its scheduler. From small JSON files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...converters.families import Family, families
from ..errors import StageError
from ..recipe.document import shipped_folder
from ..recipe.model import ModelSpec
from .family import choose_family, width_of
from .received import read_config


def local_path(spec: ModelSpec) -> Path | None:
    """Where the model lies on this machine; None for a hub id."""
    if spec.base == "micro":
        return shipped_folder() / "micro" / "model"
    path = Path(spec.base)
    return path if path.is_absolute() else None


def family_of(spec: ModelSpec) -> Family | None:
    """The family of a model by its recipe or its folder's own files; None where only the hub or a load would tell."""
    path = local_path(spec)
    if path is None or not (path / "model_index.json").is_file():
        return families().get(spec.family or "")
    try:
        return family_in(spec, path).of_prediction(scheduler_config(spec).get("prediction_type"))
    except StageError:
        return None


def scheduler_config(spec: ModelSpec) -> dict[str, Any]:
    """What the model's own scheduler says of it; empty for a model of the hub."""
    path = local_path(spec)
    if path is not None and not path.is_dir():
        path = Path(spec.config) if spec.config else None
    return _json(path, "scheduler", "scheduler_config.json") if path is not None else {}


def family_in(spec: ModelSpec, folder: Path) -> Family:
    """The family of a diffusers folder, by its own files; StageError where it is of none, or of several."""
    kind = _json(folder, "model_index.json").get("_class_name", "folder without a pipeline's class")
    return choose_family(spec, kind, width_of(kind, lambda module: _json(folder, module, "config.json")))


def _json(folder: Path, *names: str) -> dict[str, Any]:
    try:
        return read_config(folder.joinpath(*names), folder)
    except (OSError, ValueError):
        return {}
