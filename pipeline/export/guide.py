"""A short text beside the files of each program: where they go and what to type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...converters.programs import Program
from ...converters.write import Written
from .packs import Pack


@dataclass(frozen=True)
class Files:
    """What was written for one program: standalone words by name or packs, the LoRA, words in it, a script, the model.

    LoRA, `model_folder` and `model_file` are paths relative to the program's own folder of the export.
    """

    words: dict[str, tuple[Written, ...]]
    lora: str | None
    bundled: tuple[str, ...] = ()
    script: str | None = None
    model_folder: str | None = None
    model_file: str | None = None
    packs: tuple[Pack, ...] = ()
    clip_skip: int = 1


def guide_text(program: Program, files: Files) -> str:
    """Where to put the files in a program and what to type there."""
    lines = [f"{program.title}", ""]
    if files.script is not None:
        lines += [f"{files.script} loads all of this with {program.title}' own loaders; copy its lines.", ""]
    if files.clip_skip > 1:
        lines += [f"Trained with Clip skip {files.clip_skip}: set it in the program, too.", ""]
    lines += _model(program, files)
    for name, written in files.words.items():
        put = ", ".join(one.path.name for one in written)
        where = "" if files.script else f"put it into {program.folder} and "
        lines += [f"{name} is in {put}: {where}type  {written[0].trigger}"]
        lines += [f"  note: {loss}" for one in written[:1] for loss in one.losses]
    for pack in files.packs:
        names = ", ".join(one.path.name for one in pack.files)
        where = "" if files.script else f": put it into {program.lora_folder} and type  {pack.files[0].trigger}"
        lines += [f"{names} has {_span(pack.words)}{where}"]
    if files.packs:
        lines += ["", "pivotune split writes each word of a pack into a file of its own, for any program."]
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
    if files.words or files.packs:
        lines += ["The words were trained with this model; with others they mean less."]
    return [*lines, ""]


def _span(words: Sequence[str]) -> str:
    return f"{len(words):,} words, {words[0]} to {words[-1]}" if len(words) > 1 else words[0]


def bundle_trigger(lora: str, words: Sequence[str]) -> str:
    """What is typed to use words that a LoRA file carries: the LoRA itself, and each word as it was taught."""
    return f"<lora:{Path(lora).stem}:1> {' '.join(words)}"
