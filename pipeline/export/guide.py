"""A short text beside the files of each program: where they go and what to type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...converters.programs import Program
from ...converters.write import Written
from .packs import Pack


@dataclass(frozen=True)
class Files:
    """What was written for one program: standalone words by name or packs, the LoRA, words in it, a script, the model.

    LoRA, `model_folder` and `model_file` are paths relative to the program's own folder of the export, as is `alone`:
    files that have the words which are `bundled`, by name, with what is typed. `fits` says if few models take them,
    `lost` what the program does not use of the LoRA.
    """

    words: dict[str, tuple[Written, ...]]
    lora: str | None
    bundled: tuple[str, ...] = ()
    script: str | None = None
    model_folder: str | None = None
    model_file: str | None = None
    packs: tuple[Pack, ...] = ()
    clip_skip: int = 1
    alone: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    lost: Sequence[str] = ()
    fits: str = ""


def guide_text(program: Program, files: Files) -> str:
    """Where to put the files in a program and what to type there; an empty line between what belongs to each."""
    first = [program.title]
    if files.fits:
        first.append(files.fits)
    if files.clip_skip > 1:
        first.append(f"Trained with Clip skip {files.clip_skip}: set it in the program, too.")
    script = [f"{files.script} does all of this: run it, or copy its lines."] if files.script else []
    parts = (
        first,
        script,
        _model(program, files),
        _words(program, files),
        _packs(program, files),
        _lora(program, files),
    )
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _model(program: Program, files: Files) -> list[str]:
    """The fine-tuned model: users of code take the folder, all others the file, each the other where it is alone."""
    ways = {"model": files.model_file, "folder": files.model_folder}
    order = ("folder", "model") if files.script else ("model", "folder")
    way = next((way for way in order if ways[way] is not None), None)
    if way is None:
        return []
    lines = ["The fine-tuned model:"]
    if way in program.how:
        lines.append(program.how[way].format(files=ways[way]))
    else:
        lines.append(f"{ways[way]} is a folder for diffusers; 'file' in the export stage's `model` writes one file.")
    if files.words or files.packs:
        lines.append("The words were trained with this model; with others they mean less.")
    return lines


def _words(program: Program, files: Files) -> list[str]:
    lines = []
    for name, written in files.words.items():
        lines.append(_word(program, name, " and ".join(one.path.name for one in written), written[0].trigger))
        lines += [f"  note: {loss}" for one in written[:1] for loss in one.losses]
    return lines


def _word(program: Program, name: str, paths: str, trigger: str) -> str:
    said = program.how["word"].format(files=paths, type=trigger)
    return said if name in trigger else f"{said}  (for {name})"


def _packs(program: Program, files: Files) -> list[str]:
    lines = []
    for pack in files.packs:
        names = " and ".join(one.path.name for one in pack.files)
        typed = pack.files[0].trigger
        how = program.how["lora"].format(files=names, type=typed)
        if files.script is not None:  # of a file of several words no loader reads more than one by itself
            how = f"{files.script} loads {names}; in prompts type  {typed}"
        lines.append(f"{_span(pack.words)}: {how}")
    return [*lines, "pivotune split writes each word into a file of its own, for any program."] if lines else []


def _lora(program: Program, files: Files) -> list[str]:
    if files.lora is None:
        return []
    if not files.bundled:
        how = program.how["lora"].format(files=files.lora, type=f"<lora:{Path(files.lora).stem}:1>")
        return ["The LoRA:", how, *(f"  note: {loss}" for loss in files.lost)]
    how = program.how["lora"].format(files=files.lora, type=bundle_trigger(files.lora, files.bundled))
    lines = ["The LoRA, with the words in it:", how, f"The words work {program.words_in_loras.removeprefix('yes, ')}."]
    lines += [f"  note: {loss}" for loss in files.lost]
    if files.alone:
        lines += ["", "The words without the LoRA:"]
        lines += [_word(program, name, path, typed) for name, (path, typed) in files.alone.items()]
    return lines


def _span(words: Sequence[str]) -> str:
    return f"{len(words):,} words, {words[0]} to {words[-1]}" if len(words) > 1 else words[0]


def bundle_trigger(lora: str, words: Sequence[str]) -> str:
    """What is typed to use words that a LoRA file carries: the LoRA itself, and each word as it was taught."""
    return f"<lora:{Path(lora).stem}:1> {' '.join(words)}"
