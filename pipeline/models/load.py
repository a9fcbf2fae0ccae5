"""The one module that imports diffusers' loaders: a recipe's `[model]` becomes a pipeline with frozen weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from ...converters.families import Family, families
from ..errors import StageError
from ..recipe.model import ModelSpec
from ..words.injection import Encoder
from .device import DTYPES

MICRO = "micro"
SINGLE_FILES = (".safetensors", ".ckpt")


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded pipeline: frozen, in evaluation mode, on its device. `path` is its local folder or file, if it has one."""

    pipe: Any
    family: Family
    encoders: tuple[Encoder, ...]
    path: Path | None
    dtype: torch.dtype
    device: torch.device

    @property
    def denoiser(self) -> Any:
        return getattr(self.pipe, self.family.denoiser_module)


def load_model(spec: ModelSpec, device: torch.device) -> Model:
    """Load the model of a recipe: `micro`, a hub id, a diffusers folder or a single-file checkpoint.

    Weights are in the recipe's data type (the VAE in float32 where its config asks for that) and require no gradient.
    Raises StageError when it cannot be found, cannot be read, or its family stays open.
    """
    quiet_libraries()
    base, path = locate(spec.base)
    pipe = _single_file(spec, Path(base)) if path and path.is_file() else _pretrained(spec, base, path)
    return prepare(pipe, spec, path, device)


def quiet_libraries() -> None:
    """No progress bars of their own, and no advice: what matters is checked and said by us."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # before diffusers is imported, which makes transformers talk

    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()


def prepare(pipe: Any, spec: ModelSpec, path: Path | None, device: torch.device) -> Model:
    """Freeze a loaded pipeline, move it, and say what it is: the part of loading that touches no file."""
    family = _family(pipe, spec)
    dtype = DTYPES[spec.dtype]
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            keep = name == "vae" and dtype == torch.float16 and getattr(part.config, "force_upcast", False)
            wanted = torch.float32 if keep else dtype
            part.requires_grad_(False).eval().to(device)
            if part.dtype != wanted:
                part.to(wanted)
    pipe.set_progress_bar_config(disable=True)
    encoders = tuple(
        Encoder(e.key, e.module, e.tokenizer, getattr(pipe, e.module), getattr(pipe, e.tokenizer), _width(pipe, e.module))
        for e in family.encoders
        if getattr(pipe, e.module, None) is not None
    )
    return Model(pipe, family, encoders, path, dtype, device)


def locate(base: str) -> tuple[str, Path | None]:
    """What to hand to the loader, and the local path if there is one. `micro` is the model that ships."""
    if base == MICRO:
        folder = Path(str(files("pivotune.recipes") / "micro" / "model"))
        return str(folder), folder
    path = Path(base).expanduser()
    return (str(path), path) if path.exists() else (base, None)


def _pretrained(spec: ModelSpec, base: str, path: Path | None) -> Any:
    from diffusers import DiffusionPipeline

    if path is None and (base.startswith((".", "/", "~")) or base.endswith(SINGLE_FILES) or base.count("/") != 1):
        raise StageError(f"model.base = {spec.base!r}: there is no such file or folder, and it is not a hub id (owner/name)")
    if path is not None and not (path / "model_index.json").is_file():
        raise StageError(f"model.base = {spec.base!r}: the folder has no model_index.json, so it is no diffusers model")
    extra = {} if path is None else {"local_files_only": True}
    try:
        return DiffusionPipeline.from_pretrained(
            base, revision=spec.revision, variant=spec.variant, dtype=DTYPES[spec.dtype],
            **_without_guard(path), **extra,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        raise StageError(f"model.base = {spec.base!r} cannot be loaded: {_first_line(error)}") from error


def _without_guard(path: Path | None) -> dict[str, None]:
    """Leave out the safety checker and what feeds it, where the model has them: training needs neither."""
    parts = ("safety_checker", "feature_extractor")
    if path is None:
        return dict.fromkeys(parts)
    index = json.loads((path / "model_index.json").read_text("utf-8"))
    return {part: None for part in parts if part in index}


def _single_file(spec: ModelSpec, path: Path) -> Any:
    import diffusers

    if path.suffix not in SINGLE_FILES:
        raise StageError(f"model.base = {spec.base!r}: a checkpoint ends in {' or '.join(SINGLE_FILES)}")
    if spec.family is None:
        known = ", ".join(families())
        raise StageError(f"model.base = {spec.base!r} is a single file: say model.family, one of {known}")
    loader = getattr(diffusers, families()[spec.family].pipeline)
    try:
        return loader.from_single_file(
            str(path), config=spec.config, dtype=DTYPES[spec.dtype], safety_checker=None,
            local_files_only=spec.config is not None and Path(spec.config).is_dir(),
        )  # fmt: skip
    except (OSError, ValueError, KeyError) as error:
        hint = "" if spec.config else "; without a network set model.config to a diffusers folder of the same family"
        raise StageError(f"model.base = {spec.base!r} cannot be loaded: {_first_line(error)}{hint}") from error


def _family(pipe: Any, spec: ModelSpec) -> Family:
    """The family whose pipeline class and cross-attention width fit; else the one the recipe names."""
    kind = type(pipe).__name__
    fitting = [f for f in families().values() if f.pipeline == kind]
    if spec.family is not None:
        named = families()[spec.family]
        if named not in fitting:
            raise StageError(f"model.family = {spec.family!r}, but {spec.base} is a {kind}")
        return named
    if spec.base == MICRO:
        return fitting[0]
    width = getattr(getattr(pipe, "unet", None), "config", {}).get("cross_attention_dim")
    exact = [f for f in fitting if f.cross_attention == width]
    if len(exact) != 1:
        names = ", ".join(f.name for f in fitting) or "none that Pivotune knows"
        raise StageError(f"{spec.base} is a {kind} of width {width}: say model.family (possible: {names})")
    return exact[0]


def _width(pipe: Any, module: str) -> int:
    return int(getattr(pipe, module).get_input_embeddings().weight.shape[1])


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
