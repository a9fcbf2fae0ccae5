"""The lines with which diffusers loads what was exported: a script beside the files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...converters.families import Family
from ...converters.write import Written
from ..models.family import MICRO
from ..recipe.model import ModelSpec
from .guide import Files
from .packs import Pack

SHIPPED = 'str(files("pivotune.recipes.micro") / "model")'


@dataclass(frozen=True)
class Base:
    """The model a run began with (a hub id, a folder, a single file, or `micro`), and the folder of the script.

    What lies on this machine is spelled from there: a script says nothing of the folders above, and is the same in
    every place to which all of it is carried.
    """

    spec: ModelSpec
    folder: Path


def diffusers_lines(family: Family, files: Files, base: Base) -> str:
    """A script that loads the exported model (else the `base`), the words and the LoRA with diffusers' own loaders."""
    shipped = files.model_folder is None and base.spec.base == MICRO
    lines = [
        *(["from importlib.resources import files"] if shipped else []),
        "from pathlib import Path",
        "",
        "import torch",
        f"from diffusers import {family.pipeline}",
        *(["from safetensors.torch import load_file"] if files.packs else []),
        "",
        "here = Path(__file__).resolve().parent",
        f"pipe = {_loaded(family.pipeline, files, base)}",
    ]
    for name, written in files.words.items():
        lines += _load_lines(family, name, written)
    for pack in files.packs:
        lines += _load_pack(family, pack)
    if files.lora is not None:
        lora = Path(files.lora)
        lines += [f"pipe.load_lora_weights(here / {str(lora.parent)!r}, weight_name={lora.name!r})"]
    words = [*files.words, *(word for pack in files.packs[:1] for word in pack.words[:1])]
    prompt = f"a photo of {words[0]}" if words else "a photo"
    if files.clip_skip > 1:
        lines += [
            "",
            f"# Clip skip {files.clip_skip}: the layers behind the one that is read are left out",
            "parts = pipe.text_encoder.named_modules()",
            'layers = next(part for name, part in parts if name.endswith("encoder.layers"))',
            f"del layers[-{files.clip_skip - 1} :]",
        ]
    lines += ["", f"picture = pipe({prompt!r}).images[0]", 'picture.save(here / "try.png")']
    return "\n".join(lines) + "\n"


def _loaded(kind: str, files: Files, base: Base) -> str:
    """The call that loads the model."""
    if files.model_folder is not None:
        return f"{kind}.from_pretrained(here / {files.model_folder!r}, dtype=torch.{base.spec.dtype})"
    spec, single = base.spec, Path(base.spec.base).is_file()
    asked = {"config": spec.config} if single else {"revision": spec.revision, "variant": spec.variant}
    options = "".join(f", {name}={_named(base, value)}" for name, value in asked.items() if value)
    loader = "from_single_file" if single else "from_pretrained"
    name = SHIPPED if spec.base == MICRO else _named(base, spec.base)
    return f"{kind}.{loader}({name}{options}, dtype=torch.{spec.dtype})"


def _named(base: Base, name: str) -> str:
    """A hub id or the like as it is, what is on this machine by its way from the script."""
    if not Path(name).exists():
        return repr(name)
    try:
        return f"str(here / {Path(os.path.relpath(Path(name).resolve(), base.folder.resolve())).as_posix()!r})"
    except ValueError:  # another drive
        return repr(name)


def _load_lines(family: Family, name: str, written: Sequence[Written]) -> list[str]:
    lines = []
    for encoder, one in zip(family.encoders, written, strict=True):
        where = "" if len(written) == 1 else f", text_encoder=pipe.{encoder.module}, tokenizer=pipe.{encoder.tokenizer}"
        lines.append(f"pipe.load_textual_inversion(here / {one.path.name!r}, token={name!r}{where})")
    return lines


def _load_pack(family: Family, pack: Pack) -> list[str]:
    """All words of each file in one call: the model's table of tokens is made larger once."""
    encoders = {encoder.key: encoder for encoder in family.encoders}
    lines = []
    for key, one in zip(pack.keys, pack.files, strict=True):
        own = encoders[key]
        lines += [
            f"words = load_file(here / {one.path.name!r})",
            "pipe.load_textual_inversion(",
            "    [{word: vectors} for word, vectors in words.items()],",
            f"    text_encoder=pipe.{own.module}, tokenizer=pipe.{own.tokenizer},",
            ")",
        ]
    return lines
