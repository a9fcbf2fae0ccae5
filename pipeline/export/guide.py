"""A short text beside the files of each program: where they go, what to type, and for diffusers the lines that load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...converters.families import Family
from ...converters.programs import Program
from ...converters.write import Written
from ..recipe.model import ModelSpec


@dataclass(frozen=True)
class Files:
    """What was written for one program: standalone words by name, the LoRA (relative path), words in it, a script."""

    words: dict[str, tuple[Written, ...]]
    lora: str | None
    bundled: tuple[str, ...] = ()
    script: str | None = None


def guide_text(program: Program, files: Files) -> str:
    """Where to put the files in a program and what to type there."""
    lines = [f"{program.title}", ""]
    if files.script is not None:
        lines += [f"{files.script} loads all of this with {program.title}' own loaders; copy its lines.", ""]
    for name, written in files.words.items():
        put = ", ".join(one.path.name for one in written)
        where = "" if files.script else f"put it into {program.folder} and "
        lines += [f"{name} is in {put}: {where}type  {written[0].trigger}"]
        lines += [f"  note: {loss}" for one in written[:1] for loss in one.losses]
    if files.lora is not None:
        has = " with the words in it" if files.bundled else ""
        lines += ["", f"LoRA{has}: {files.lora}" + ("" if files.script else f", to be put into {program.lora_folder}")]
        if files.bundled:
            lines += [
                f"type  {bundle_trigger(files.lora, files.bundled)}",
                f"Words in LoRAs: {program.words_in_loras}.",
            ]
    return "\n".join(lines) + "\n"


def bundle_trigger(lora: str, words: Sequence[str]) -> str:
    """What is typed to use words that a LoRA file carries: the LoRA itself, and each word as it was taught."""
    return f"<lora:{Path(lora).stem}:1> {' '.join(words)}"


def diffusers_lines(family: Family, files: Files, base: str, spec: ModelSpec) -> str:
    """A script that loads the exported words, and the LoRA, with diffusers' own loaders.

    `base` is a hub id, a folder or a single file; the rest of how the model is loaded is as `spec` has it.
    """
    kind, single = family.pipeline, Path(base).is_file()
    asked = {"config": spec.config} if single else {"revision": spec.revision, "variant": spec.variant}
    options = "".join(f", {name}={value!r}" for name, value in asked.items() if value)
    loader = "from_single_file" if single else "from_pretrained"
    lines = [
        "from pathlib import Path",
        "",
        "import torch",
        f"from diffusers import {kind}",
        "",
        "here = Path(__file__).parent",
        f"pipe = {kind}.{loader}({base!r}{options}, dtype=torch.{spec.dtype})",
    ]
    for name, written in files.words.items():
        lines += _load_lines(family, name, written)
    if files.lora is not None:
        lora = Path(files.lora)
        lines += [f"pipe.load_lora_weights(here / {str(lora.parent)!r}, weight_name={lora.name!r})"]
    first = next(iter(files.words))
    lines += ["", f"picture = pipe({f'a photo of {first}'!r}).images[0]", 'picture.save(here / "try.png")']
    return "\n".join(lines) + "\n"


def _load_lines(family: Family, name: str, written: Sequence[Written]) -> list[str]:
    lines = []
    for encoder, one in zip(family.encoders, written, strict=True):
        where = "" if len(written) == 1 else f", text_encoder=pipe.{encoder.module}, tokenizer=pipe.{encoder.tokenizer}"
        lines.append(f"pipe.load_textual_inversion(here / {one.path.name!r}, token={name!r}{where})")
    return lines
