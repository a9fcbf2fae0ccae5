"""Compares the input channels of a denoiser with the latents of its VAE: inpainting and other models take more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...converters.families import Family, families
from ..errors import StageError
from ..recipe.model import ModelSpec
from .checkpoint import tensor_shapes
from .family import local_path, part_config, pipeline_class

# The first layer of the denoiser in single files, (out, in, …): Stable Diffusion, Stable Diffusion 3, FLUX.1.
_FIRST = ("input_blocks.0.0.weight", "x_embedder.proj.weight", "img_in.weight")
_DECODER = "decoder.conv_in.weight"  # the first layer of a VAE's decoder, in all spellings
_DENOISERS = ("unet", "transformer")


def require_latent_channels(spec: ModelSpec, denoiser: Mapping[str, Any], vae: Mapping[str, Any], packed: int) -> None:
    """StageError when a denoiser takes other channels than the latents of the VAE, by their configs.

    `packed` is the side of the square of latents that the pipeline packs into one: 2 for FLUX.1, 1 for most.
    """
    _require(spec, denoiser.get("in_channels"), vae.get("latent_channels") or vae.get("z_dim"), [packed])


def check_channels(spec: ModelSpec, path: Path) -> None:
    """The same for a local model by its small files or its header, whatever its pipeline's class; reads no weights."""
    if path.is_file():
        _check_file(spec, path)
        return
    kind = pipeline_class(path)
    known = [family for family in families().values() if family.pipeline == kind]
    modules = [known[0].denoiser_module] if known else _DENOISERS
    denoiser: dict[str, Any] = next(filter(None, (part_config(path, name) for name in modules)), {})
    vae = part_config(path, "vae")
    latents = vae.get("latent_channels") or vae.get("z_dim")
    _require(spec, denoiser.get("in_channels"), latents, _sides(known))


def _sides(known: Iterable[Family]) -> list[int]:
    return sorted({family.packed for family in known}) or [1, 2]


def _check_file(spec: ModelSpec, path: Path) -> None:
    shapes = tensor_shapes(path)
    first = [shape for name, shape in shapes.items() if name.endswith(_FIRST) and "control" not in name]
    vae = [shape for name, shape in shapes.items() if name.endswith(_DECODER)]
    latents: object = None
    if vae:
        latents = vae[0][1]
    elif spec.config:
        latents = part_config(Path(spec.config), "vae").get("latent_channels")
    named = families().get(spec.family or "")
    if first and len(first[0]) > 1:
        _require(spec, first[0][1], latents, _sides([named] if named else []))


def _require(spec: ModelSpec, channels: object, latents: object, sides: Iterable[int]) -> None:
    if not isinstance(channels, int) or not isinstance(latents, int):
        return  # loading the model reports what is wrong with its configs
    expected = [latents * side**2 for side in sides]
    if channels in expected:
        return
    where = f"model.base = {str(local_path(spec) or spec.base)!r}: its denoiser takes {channels} channels"
    if channels < min(expected):
        raise StageError(f"{where}, and the latents of its VAE have {expected[0]}: they are of different models")
    if channels == 2 * latents + 1:
        kind = "an inpainting model"
    else:
        kind = "a model with a further input (for inpainting, editing, depth or video)"
    raise StageError(
        f"{where}, of which the latents of its VAE are {expected[0]}: {kind}, which cannot be trained; use the model "
        "that it was made from"
    )
