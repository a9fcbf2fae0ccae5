"""Names of tensors in single files that other programs spell otherwise, and the parts that a file does not have."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ...converters.families import Family
from .checkpoint import tensor_shapes

if TYPE_CHECKING:  # checks need no torch
    from torch import Tensor

# CLIP without the level `text_model`: NovelAI's files, and what conversion scripts make of folders of transformers 5.
_CLIP = re.compile(r"(?:embeddings|encoder\.layers|final_layer_norm)\.")
_VAE = re.compile(r"(.*(?:encoder|decoder)\.mid\.attn_1\.)(.+)\.(weight|bias)")
# The VAE's attention as newer and older versions of diffusers call it, to the name in the original code.
_ATTENTION = {
    "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out", "group_norm": "norm",
    "query": "q", "key": "k", "value": "v", "proj_attn": "proj_out",
}  # fmt: skip
# A prefix of OpenCLIP's names, and the one that such an encoder has in transformers' names: conversion scripts take
# folders of Stable Diffusion 2 that were saved with transformers 5 for Stable Diffusion 1.
_OPEN_CLIP = {"cond_stage_model.model.": "cond_stage_model.transformer."}
# Names of a denoiser's first layers, where its file holds nothing else and they have no prefix.
_BARE = ("input_blocks.", "joint_blocks.")


_VAES = ("vae.", "first_stage_model.")
_ENCODERS = ("text_encoder", "cond_stage_model.", "conditioner.")


def renamed(names: Iterable[str], family: Family) -> dict[str, str]:
    """The names that differ from those of the family's usual checkpoint, each with the usual one."""
    found, prefixes = {}, tuple(part.prefix for part in family.checkpoint.values())
    names = list(names)
    bare = family.checkpoint and not any(name.startswith(prefixes) for name in names)
    bare = bare and any(name.startswith(_BARE) for name in names)
    clips = {part.prefix: part.prefix for part in family.checkpoint.values() if part.layout == "clip"}
    clips |= {_OPEN_CLIP[part.prefix]: part.prefix for part in family.checkpoint.values() if part.prefix in _OPEN_CLIP}
    for name in names:
        prefix = next((one for one in clips if name.startswith(one)), None)
        if prefix is not None and (_CLIP.match(name, len(prefix)) or clips[prefix] != prefix):
            found[name] = f"{clips[prefix]}text_model.{name.removeprefix(prefix).removeprefix('text_model.')}"
        elif (vae := _VAE.fullmatch(name)) is not None and vae[2] in _ATTENTION:
            found[name] = f"{vae[1]}{_ATTENTION[vae[2]]}.{vae[3]}"
        elif bare:
            found[name] = family.checkpoint[family.denoiser_module].prefix + name
    return found


def lacking(names: Iterable[str], family: Family) -> list[str]:
    """The parts of the family's usual checkpoint of which a file has no tensor, by attribute of the pipeline.

    Files of families without one usually hold the denoiser alone.
    """
    names = list(names)
    if not family.checkpoint:
        parts = {"vae": _VAES} | {encoder.module: _ENCODERS for encoder in family.encoders}
        return [part for part, starts in parts.items() if not any(name.startswith(starts) for name in names)]
    changed = renamed(names, family)
    usual = [changed.get(name, name) for name in names]
    return [
        part for part, about in family.checkpoint.items() if not any(name.startswith(about.prefix) for name in usual)
    ]


def respelled_parts(names: Iterable[str], family: Family) -> list[str]:
    """The parts of a file with other names than those of the family's usual checkpoint."""
    usual = renamed(names, family).values()
    return [part for part, about in family.checkpoint.items() if any(name.startswith(about.prefix) for name in usual)]


def checkpoint_names(path: Path) -> list[str]:
    """The names of a checkpoint's tensors. Of a pickle the tensors are mapped, not read."""
    return list(tensor_shapes(path) or (read_tensors(path) if path.suffix.lower() != ".safetensors" else ()))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint or of one model's file, mapped into memory where the format allows it.

    What the libraries raise for a corrupt file, and for a pickle that holds more than tensors.
    """
    import torch
    from safetensors.torch import load_file

    if path.suffix.lower() == ".safetensors":
        return load_file(str(path))
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"  # the older format of torch cannot be mapped
    found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    while "state_dict" in found:
        found = found["state_dict"]
    return {name: one for name, one in found.items() if isinstance(one, torch.Tensor)}
