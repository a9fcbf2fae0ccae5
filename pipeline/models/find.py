"""Finds the model of a recipe: the shipped one, a folder, a file, or a snapshot of the hub in the local cache."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..errors import StageError
from ..files import read_json
from ..recipe.load import CHECKPOINTS
from ..recipe.model import ModelSpec
from .family import MICRO, check_kind
from .index import INDEX, MODULAR, plain_index
from .modular import package_problem
from .received import model_error

GUARDS = ("safety_checker", "feature_extractor", "image_encoder")  # training needs none of them


def find_model(spec: ModelSpec) -> Path:
    """The local folder or file of a recipe's model; a hub id is downloaded, unless it is in the local cache.

    Raises StageError when it does not exist.
    """
    if spec.base == MICRO:
        return Path(str(files("pivotune.recipes") / "micro" / "model"))
    path = Path(spec.base).expanduser()
    if path.is_absolute() and os.path.exists(path):  # a recipe's relative paths were made absolute, so this is a hub id
        if not path.is_dir() and not path.is_file():
            raise StageError(f"model.base = {spec.base!r}: not a regular file or folder")
        return path
    if spec.base.startswith((".", "/", "~")) or spec.base.endswith(CHECKPOINTS) or spec.base.count("/") != 1:
        why = "no such file or folder, and not a hub id (owner/name)"
        raise StageError(f"model.base = {spec.base!r}: {why}")
    return _download(spec)


def _download(spec: ModelSpec) -> Path:
    """The snapshot of a hub model: only the files that its pipeline loads, and none if its kind is not supported."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        where: dict[str, Any] = {"revision": spec.revision, "local_files_only": not hub_reachable(spec)}
        try:
            index = Path(hf_hub_download(spec.base, INDEX, **where))
        except EntryNotFoundError:
            return _download_modular(spec, where)
        check_kind(spec, read_json(index).get("_class_name"))
        from diffusers import DiffusionPipeline  # takes seconds, so it is imported late

        return Path(DiffusionPipeline.download(spec.base, variant=spec.variant, **where, **dict.fromkeys(GUARDS)))
    except hub_errors() as error:
        raise model_error(spec, hub_problem(error, spec)) from error


def _download_modular(spec: ModelSpec, where: dict[str, Any]) -> Path:
    """The snapshot of a model that has the index of a modular pipeline: that, and the folders of its parts."""
    from huggingface_hub import hf_hub_download, snapshot_download

    index = read_json(Path(hf_hub_download(spec.base, MODULAR, **where)))
    [family, *_] = check_kind(spec, index.get("_class_name"))
    if problem := package_problem(family, None):
        raise StageError(problem)
    parts = [name for name, value in plain_index(index).items() if isinstance(value, list)]
    return Path(snapshot_download(spec.base, allow_patterns=[MODULAR, *(f"{name}/*" for name in parts)], **where))


def hub_reachable(spec: ModelSpec) -> bool:
    """Whether the hub can be reached: asked once, as a download would retry for half a minute.

    Raises the hub's error when there is no such model or revision.
    """
    from huggingface_hub import model_info
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        model_info(spec.base, revision=spec.revision, timeout=10)
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise
    except hub_errors():
        return False
    return True


def hub_errors() -> tuple[type[Exception], ...]:
    """OSError and the base class of whichever HTTP library the hub's client uses; ValueError for a bad name."""
    from huggingface_hub.errors import HfHubHTTPError

    return (*HfHubHTTPError.__bases__, ValueError)


def hub_problem(error: Exception, spec: ModelSpec) -> str:
    """What is wrong, and what to do about it."""
    from huggingface_hub import errors

    texts: dict[type[Exception], str] = {
        errors.HFValidationError: "not a hub id (owner/name)",
        errors.GatedRepoError: "its terms must be accepted on the hub; then log in (hf auth login)",
        errors.RepositoryNotFoundError: "the hub has no such model, or it is private; then log in (hf auth login)",
        errors.RevisionNotFoundError: f"the hub has no revision {spec.revision!r} of it",
        errors.RemoteEntryNotFoundError: f"it has no {INDEX} and no {MODULAR}, so it is not a diffusers model",
    }
    known = [text for kind, text in texts.items() if isinstance(error, kind)]
    offline = "it is not complete in the local cache, and the hub cannot be reached; use a folder, or go online once"
    return known[0] if known else offline
