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
    """What was written for one program: standalone words by name, the LoRA, words in it, a script, the model.

    LoRA, `model_folder` and `model_file` are paths relative to the program's own folder of the export.
    """

    words: dict[str, tuple[Written, ...]]
    lora: str | None
    bundled: tuple[str, ...] = ()
    script: str | None = None
    model_folder: str | None = None
    model_file: str | None = None


@dataclass(frozen=True)
class Base:
    """The model a run began with: a hub id, a folder or a single file, and how the recipe loads it."""

    name: str
    spec: ModelSpec


def guide_text(program: Program, files: Files) -> str:
    """Where to put the files in a program and what to type there."""
    lines = [f"{program.title}", ""]
    if files.script is not None:
        lines += [f"{files.script} loads all of this with {program.title}' own loaders; copy its lines.", ""]
    lines += _model(program, files)
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


def _model(program: Program, files: Files) -> list[str]:
    """The fine-tuned model: users of code take the folder, all others the file, each the other where it is alone."""
    first, second = files.model_file, files.model_folder
    model = (second or first) if files.script else (first or second)
    if model is None:
        return []
    lines = [f"The fine-tuned model: {model}" + ("" if files.script else f", to be put into {program.model_folder}")]
    if files.words:
        lines += ["The words were trained with this model; with others they mean less."]
    return [*lines, ""]


def bundle_trigger(lora: str, words: Sequence[str]) -> str:
    """What is typed to use words that a LoRA file carries: the LoRA itself, and each word as it was taught."""
    return f"<lora:{Path(lora).stem}:1> {' '.join(words)}"


def diffusers_lines(family: Family, files: Files, base: Base) -> str:
    """A script that loads the exported model (else the `base`), the words and the LoRA with diffusers' own loaders."""
    lines = [
        "from pathlib import Path",
        "",
        "import torch",
        f"from diffusers import {family.pipeline}",
        "",
        "here = Path(__file__).parent",
        f"pipe = {_loaded(family.pipeline, files, base)}",
    ]
    for name, written in files.words.items():
        lines += _load_lines(family, name, written)
    if files.lora is not None:
        lora = Path(files.lora)
        lines += [f"pipe.load_lora_weights(here / {str(lora.parent)!r}, weight_name={lora.name!r})"]
    prompt = f"a photo of {next(iter(files.words))}" if files.words else "a photo"
    lines += ["", f"picture = pipe({prompt!r}).images[0]", 'picture.save(here / "try.png")']
    return "\n".join(lines) + "\n"


def _loaded(kind: str, files: Files, base: Base) -> str:
    """The call that loads the model."""
    if files.model_folder is not None:
        return f"{kind}.from_pretrained(here / {files.model_folder!r}, dtype=torch.{base.spec.dtype})"
    spec, single = base.spec, Path(base.name).is_file()
    asked = {"config": spec.config} if single else {"revision": spec.revision, "variant": spec.variant}
    options = "".join(f", {name}={value!r}" for name, value in asked.items() if value)
    loader = "from_single_file" if single else "from_pretrained"
    return f"{kind}.{loader}({base.name!r}{options}, dtype=torch.{spec.dtype})"


def _load_lines(family: Family, name: str, written: Sequence[Written]) -> list[str]:
    lines = []
    for encoder, one in zip(family.encoders, written, strict=True):
        where = "" if len(written) == 1 else f", text_encoder=pipe.{encoder.module}, tokenizer=pipe.{encoder.tokenizer}"
        lines.append(f"pipe.load_textual_inversion(here / {one.path.name!r}, token={name!r}{where})")
    return lines
