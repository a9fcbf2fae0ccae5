"""The family of a model and facts about it, from its small JSON files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isqrt
from pathlib import Path
from typing import Any

from ...converters.families import Family, families
from ..errors import StageError
from ..recipe.document import shipped_folder
from ..recipe.model import ModelSpec
from ..vae import latent_channels, vae_scale
from .checkpoint import checkpoint_family, stated_prediction
from .index import INDEX, has_index, index_file
from .received import read_config

MICRO = "micro"


def choose_family(spec: ModelSpec, kind: Any, width: Any) -> Family:
    """The family of a pipeline class `kind` with this cross-attention width.

    A family named in the recipe must have this class, but may have any width: small models belong to it too.
    Raises StageError when no family fits, when several fit, or when the named one does not.
    """
    fitting = check_kind(spec, kind)
    if spec.family is not None:
        return _named(spec, kind, width, fitting)
    if spec.base == MICRO:
        return fitting[0]
    exact = [family for family in fitting if family.cross_attention == width]
    if len(exact) != 1:
        names = ", ".join(family.name for family in fitting)
        raise StageError(f"{spec.base} is a {kind} of width {width}; set model.family (possible: {names})")
    return exact[0]


def width_of(kind: Any, config_of: Callable[[str], Mapping[str, Any]]) -> Any:
    """Width of the text that a pipeline's denoiser attends to; `config_of` gives the config of one of its models.

    None if the class belongs to no family, or the config has no width.
    """
    fitting = [family for family in families().values() if family.pipeline == kind]
    return config_of(fitting[0].denoiser_module).get(fitting[0].denoiser_width) if fitting else None


def check_kind(spec: ModelSpec, kind: Any) -> list[Family]:
    """The families of this pipeline class; StageError when there is none."""
    fitting = [family for family in families().values() if family.pipeline == kind]
    for family in families().values():
        if family.decoder is not None and family.decoder.pipeline == kind:
            text = f"is only the decoder of {family.title}; use the model that is trained, as {family.example}"
            raise StageError(f"model.base = {spec.base!r} {text}")
    if not fitting:
        known = ", ".join(family.title for family in families().values())
        raise StageError(f"model.base = {spec.base!r} is a {kind}, which is not supported; supported: {known}")
    return fitting


def _named(spec: ModelSpec, kind: Any, width: Any, fitting: list[Family]) -> Family:
    named = families().get(spec.family or "")
    if named is None:
        raise StageError(f"model.family = {spec.family!r} is not a known family; known: {', '.join(families())}")
    if named not in fitting:
        raise StageError(f"model.family = {spec.family!r}, but {spec.base} is a {kind}")
    others = [family for family in fitting if family.cross_attention == width and family is not named]
    if others:
        raise StageError(f"model.family = {spec.family!r}, but {spec.base} has the width of {others[0].name} ({width})")
    return named


def no_single_file(family: Family) -> str:
    """Why a model of this family cannot be loaded from a single file; empty if it can."""
    if not family.modular and family.image_encoder is None:
        return ""
    return f"a file has only a part of {family.title}; use a hub id ({family.example}) or a diffusers folder"


def native_resolution(family: Family, denoiser: Mapping[str, Any], vae: Mapping[str, Any]) -> int:
    """Side in pixels of the images that a model was trained on: from its configs, else its family."""
    size = denoiser.get("sample_size")
    return int(size * vae_scale(vae)) if isinstance(size, int) else family.resolution


def size_multiple(denoiser: Mapping[str, Any], vae: Mapping[str, Any]) -> int:
    """Both sides of an image must be a multiple of this: pixels per latent times latents per patch.

    Patches are cut by the denoiser (`patch_size`, of video models a list) or by its pipeline, which then gives it more
    channels.
    """
    packed = isqrt(max(1, int(denoiser.get("in_channels") or 1) // latent_channels(vae)))
    patch = denoiser.get("patch_size") or denoiser.get("all_patch_size") or 1
    return (vae_scale(vae) * max(packed, int(patch[-1] if isinstance(patch, list | tuple) else patch))).numerator


def no_chunks(family: Family) -> str:
    """Why a family's prompts are not encoded in chunks."""
    limit = max(encoder.length or 77 for encoder in family.encoders)
    return (
        f"prompt_chunks is not supported for {family.title}: its prompts are encoded at once, up to {limit} tokens, "
        "and not in chunks of 75; remove it"
    )


def local_path(spec: ModelSpec) -> Path | None:
    """The local folder or file of the model; None for a hub id."""
    if spec.base == "micro":
        return shipped_folder() / "micro" / "model"
    path = Path(spec.base)
    return path if path.is_absolute() else None


def family_of(spec: ModelSpec) -> Family | None:
    """The family of a model by its recipe or the files of its folder; None if only the hub or loading it could tell."""
    path = local_path(spec)
    if path is not None and path.is_file():
        family = families().get(spec.family or checkpoint_family(path) or "")
        return family and family.of_prediction(scheduler_config(spec).get("prediction_type"))
    if path is None or not has_index(path):
        return families().get(spec.family or "")
    try:
        return family_in(spec, path).of_prediction(scheduler_config(spec).get("prediction_type"))
    except StageError:
        return None


def scheduler_config(spec: ModelSpec) -> dict[str, Any]:
    """The config of the model's scheduler, with what a single file says itself; empty for a model of the hub."""
    path = local_path(spec)
    stated = stated_prediction(path) if path is not None and path.is_file() else None
    if path is not None and not path.is_dir():
        path = Path(spec.config) if spec.config else None
    config = _json(path, "scheduler", "scheduler_config.json") if path is not None else {}
    return config if stated is None else config | stated.changes


def family_in(spec: ModelSpec, folder: Path) -> Family:
    """The family of a diffusers folder, by its files; StageError if none fits, or several."""
    kind = pipeline_class(folder)
    return choose_family(spec, kind, width_of(kind, lambda module: part_config(folder, module)))


def pipeline_class(folder: Path) -> Any:
    """The name of the pipeline's class in the index of a diffusers folder."""
    return _json(folder, index_file(folder).name).get("_class_name", "folder without a pipeline's class")


def part_config(folder: Path, part: str) -> dict[str, Any]:
    """The config of one model in a diffusers folder; empty if it cannot be read."""
    return _json(folder, part, "config.json")


def boundary_of(spec: ModelSpec) -> float:
    """Where a second denoiser takes over, as a share of the timesteps; the first draws those above. 0: there is one.

    Wan 2.2 has two; training changes the first.
    """
    path = local_path(spec)
    index = _json(path, INDEX) if path is not None and path.is_dir() else {}
    second = index.get("transformer_2")
    return float(index.get("boundary_ratio") or 0.0) if isinstance(second, list) and second[:1] != [None] else 0.0


def _json(folder: Path, *names: str) -> dict[str, Any]:
    try:
        return read_config(folder.joinpath(*names), folder)
    except (OSError, ValueError):
        return {}
