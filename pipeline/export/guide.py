"""HOW-TO.txt next to the exported files: where to put them and what to type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...converters.programs import Program
from ...converters.write import Written
from .packs import Pack


@dataclass(frozen=True)
class Files:
    """The files of one program: embeddings by name or packs, the LoRA, the embeddings bundled in it, script and model.

    `lora`, `model_folder` and `model_file` are paths relative to the program's folder of the export, as are those of
    `alone`: standalone files of the `bundled` embeddings by name, with what to type; and of `by_hand`: standalone files
    by name that only the script can load. `lacking` are parts of the pipeline that this model does not have. `fits`
    says which model they are for, `lost` what the program ignores of the LoRA. `lora_parts` is a file with what the
    loader of diffusers leaves out and the script adds; `under` says which fixed LoRAs they were trained under,
    `no_embeddings` why there are no embeddings.
    """

    embeddings: dict[str, tuple[Written, ...]]
    lora: str | None
    bundled: tuple[str, ...] = ()
    script: str | None = None
    model_folder: str | None = None
    model_file: str | None = None
    packs: tuple[Pack, ...] = ()
    clip_skip: int = 1
    prompt_chunks: int = 1
    under: tuple[str, ...] = ()
    alone: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    lacking: tuple[str, ...] = ()
    by_hand: Mapping[str, str] = field(default_factory=dict)
    lost: Sequence[str] = ()
    fits: str = ""
    lora_parts: str | None = None
    no_embeddings: str = ""


def guide_text(program: Program, files: Files) -> str:
    """Where to put the files of a program and what to type in prompts."""
    first = [program.title]
    if files.fits:
        first.append(files.fits)
    if files.clip_skip > 1:
        first.append(f"Trained with Clip skip {files.clip_skip}; set it in the program too.")
    first += [f"{text[0].upper()}{text[1:]}." for text in files.under]
    if files.prompt_chunks > 1:
        first.append(_long_prompts(program, files))
    script = [f"{files.script} loads everything: run it, or copy its lines."] if files.script else []
    parts = (
        first,
        script,
        _model(program, files),
        _embeddings(program, files),
        _packs(program, files),
        _lora(program, files),
    )
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


LONG_PROMPTS = {
    "yes": "Type prompts of any length: the program encodes long ones in chunks of 75 tokens by itself.",
    "no": "The program truncates prompts at 75 tokens: keep the placeholder within them.",
    "": "Whether the program reads more than 75 tokens is not known: keep the placeholder within the first 75.",
}


def _long_prompts(program: Program, files: Files) -> str:
    """That training has read long captions, and what the program does with long prompts."""
    known = LONG_PROMPTS[program.long_prompts]
    if files.script is not None:
        known = f"The pipeline truncates prompts at 75 tokens; encode() in {files.script} reads long ones."
    return f"Trained with captions of up to {75 * files.prompt_chunks} tokens. {known}"


def _model(program: Program, files: Files) -> list[str]:
    """The fine-tuned model: the folder for users of code, the file for others, or the only one there is."""
    forms = {"model": files.model_file, "folder": files.model_folder}
    order = ("folder", "model") if files.script else ("model", "folder")
    form = next((form for form in order if forms[form] is not None), None)
    if form is None:
        return []
    lines = ["The fine-tuned model:"]
    if form in program.how:
        lines.append(program.how[form].format(files=forms[form]))
    else:
        lines.append(f"{forms[form]} is a folder for diffusers; 'file' in the export stage's `model` writes one file.")
    if files.embeddings or files.packs:
        lines.append("The embeddings were trained with this model; with other models they work less well.")
    return lines


def _embeddings(program: Program, files: Files) -> list[str]:
    lines = ["The embeddings:", files.no_embeddings] if files.no_embeddings else []
    for name, written in files.embeddings.items():
        lines.append(_embedding(program, name, " and ".join(one.path.name for one in written), written[0].trigger))
        lines += [f"  note: {loss}" for one in written[:1] for loss in one.losses]
    for name, path in files.by_hand.items():
        lines.append(f"{files.script} loads {path}; in prompts type  {name}")
    if files.by_hand:
        lines.append(f"This pipeline of {program.title} has no loader for embeddings: the script adds tokens for them.")
    return lines


def _embedding(program: Program, name: str, paths: str, trigger: str) -> str:
    text = program.how["embedding"].format(files=paths, type=trigger)
    return text if name in trigger else f"{text}  (for {name})"


def _packs(program: Program, files: Files) -> list[str]:
    lines = []
    for pack in files.packs:
        names = " and ".join(one.path.name for one in pack.files)
        typed = pack.files[0].trigger
        how = program.how["lora"].format(files=names, type=typed)
        if files.script is not None:  # no loader of diffusers reads several embeddings of a file
            how = f"{files.script} loads {names}; in prompts type  {typed}"
        lines.append(f"{_span(pack.embeddings)}: {how}")
    return [*lines, "`pivotune split` writes each embedding into its own file, for any program."] if lines else []


def _lora(program: Program, files: Files) -> list[str]:
    if files.lora is None and files.lora_parts is None:
        return []
    if files.lora is None or not files.bundled:
        lines = ["The LoRA:"]
        if files.lora is not None:
            lines.append(program.how["lora"].format(files=files.lora, type=f"<lora:{Path(files.lora).stem}:1>"))
        if files.lora_parts is not None:
            lines.append(f"{files.script} adds {files.lora_parts}, for which the pipeline has no loader.")
        return [*lines, *(f"  note: {loss}" for loss in files.lost)]
    how = program.how["lora"].format(files=files.lora, type=bundle_trigger(files.lora, files.bundled))
    lines = [
        "The LoRA with bundled embeddings:",
        how,
        f"The embeddings work {program.embeddings_in_loras.removeprefix('yes, ')}.",
    ]
    lines += [f"  note: {loss}" for loss in files.lost]
    if files.alone:
        lines += ["", "The embeddings without the LoRA:"]
        lines += [_embedding(program, name, path, typed) for name, (path, typed) in files.alone.items()]
    return lines


def _span(embeddings: Sequence[str]) -> str:
    return (
        f"{len(embeddings):,} embeddings, {embeddings[0]} to {embeddings[-1]}" if len(embeddings) > 1 else embeddings[0]
    )


def bundle_trigger(lora: str, embeddings: Sequence[str]) -> str:
    """What to type to use the embeddings bundled in a LoRA file: the LoRA and each placeholder."""
    return f"<lora:{Path(lora).stem}:1> {' '.join(embeddings)}"
