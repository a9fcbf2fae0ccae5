"""All files of one program: embeddings, LoRA or both in one file, and the texts on how to use them."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...converters.embedding import Contents, Embedding
from ...converters.programs import Program, programs
from ...converters.tensor import RawTensor
from ...converters.write import Written, layout_for, write_embeddings
from ..errors import StageError
from ..text import count_of, fits_only
from .artefacts import note
from .context import ExportContext
from .guide import Files, bundle_trigger, guide_text
from .lora import check_reading, left_out, write_bundle, write_plain
from .lora_base import under
from .lora_layouts import for_program, ignored_parts, split_loaded
from .packs import Pack, write_packs
from .script import Base, diffusers_lines
from .standalone import widths


@dataclass(frozen=True)
class Made:
    """Files that all programs share: the plain LoRA, the fine-tuned model as folder and as file.

    `embeddings` has the standalone file of each embedding.
    """

    lora: Path | None = None
    folder: Path | None = None
    file: Path | None = None
    embeddings: Mapping[str, Written] = field(default_factory=dict)


def export_for(
    context: ExportContext,
    ready: Contents,
    program: Program,
    folder: Path,
    made: Made,
    *,
    bundle: bool,
    each: bool,
    most: int | None,
) -> int:
    """Write the files of one program, a file for `each` embedding or packs; returns how many there must be."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = bool(ready.rest) and bundle and program.embeddings_in_loras.startswith("yes") and bool(ready.embeddings)
    if whole:
        path = folder / f"{context.recipe.name}.safetensors"
        tensors = for_program(ready.rest, program, context.model.family, context.model.pipe)
        write_bundle(context, tensors or ready.rest, ready.embeddings, path, program, facts=ready.rest)
        lost = left_out(context, path, program)
        names = tuple(embedding.name for embedding in ready.embeddings)
        note(context, path, "bundle", program, trigger=bundle_trigger(path.name, names))
        declared, files = 1, Files({}, path.name, names, alone=_alone(context, program, folder, made), lost=lost)
    else:
        by_hand = _by_hand(context, program, folder, made)
        loaded = () if by_hand else ready.embeddings
        embeddings, packs, declared = _embeddings(context, loaded, program, folder, each=each, most=most)
        taken = {one.path.name.casefold() for several in embeddings.values() for one in several}
        loras = _lora(context, ready, program, folder, made, taken)
        declared += loras.declared
        files = Files(embeddings, loras.path, packs=packs, lora_parts=loras.parts, lost=loras.lost, by_hand=by_hand)
    ignored = [*ignored_parts(ready.rest, program), *files.lost]
    context.warnings.extend(ignored)
    files = replace(
        files, script=program.script, lacking=_lacking(context),
        model_folder=_from(folder, made.folder),
        model_file=_from(folder, made.file), clip_skip=context.recipe.model.clip_skip,
        prompt_chunks=context.recipe.model.prompt_chunks,
        under=tuple(map(under, context.recipe.fixed_loras)),
        fits=fits_only(context.recipe.model.base, context.model.family, widths(context)), lost=ignored,
        no_embeddings=_no_embeddings(context, ready, program, folder, made),
    )  # fmt: skip
    _texts(context, files, program, folder)
    return declared


def _no_embeddings(context: ExportContext, ready: Contents, program: Program, folder: Path, made: Made) -> str:
    """Why a program that gets the LoRA has no files of embeddings; empty if it has, or there are none."""
    family = context.model.family
    if not ready.embeddings or program.script is not None or family.name in program.layouts:
        return ""
    why = program.no_embeddings(family) or f"how {program.title} reads embeddings for {family.title} is not known"
    place = os.path.relpath(folder.parent / f"{context.recipe.name}_embeddings", folder)
    return f"{why[0].upper()}{why[1:]}; those of this run are in {place}."


def _lacking(context: ExportContext) -> tuple[str, ...]:
    """Text encoders of the family that the model does not have (SD3 without T5), and their tokenizers."""
    present = {encoder.key for encoder in context.model.encoders}
    lacking = [encoder for encoder in context.model.family.encoders if encoder.key not in present]
    return tuple(name for encoder in lacking for name in (encoder.module, encoder.tokenizer))


def _from(folder: Path, path: Path | None) -> str | None:
    return None if path is None else os.path.relpath(path, folder)


def _alone(context: ExportContext, program: Program, folder: Path, made: Made) -> dict[str, tuple[str, str]]:
    """For each embedding the path of its standalone file and what to type, where the program can read that file."""
    family = context.model.family.name
    return {
        name: (os.path.relpath(one.path, folder), program.prompted(one.path.stem, name))
        for name, one in made.embeddings.items()
        if one.program and programs()[one.program].layouts[family] == program.layouts.get(family)
    }


def _by_hand(context: ExportContext, program: Program, folder: Path, made: Made) -> dict[str, str]:
    """The standalone file of each embedding where the program has no loader for the family, but users write code."""
    if program.script is None or context.model.family.name in program.layouts:
        return {}
    return {name: Path(os.path.relpath(one.path, folder)).as_posix() for name, one in made.embeddings.items()}


def _embeddings(
    context: ExportContext,
    embeddings: Sequence[Embedding],
    program: Program,
    folder: Path,
    *,
    each: bool,
    most: int | None,
) -> tuple[dict[str, tuple[Written, ...]], tuple[Pack, ...], int]:
    """The files of a program's embeddings by name, or its packs, and how many files there must be."""
    if not embeddings or context.model.family.name not in program.layouts:
        return {}, (), 0
    if not each:
        packs = write_packs(context, embeddings, folder, most, program)
        return {}, tuple(packs), sum(len(pack.files) for pack in packs)
    family = context.model.family
    written_files = write_embeddings(embeddings, program.name, family, folder, widths=widths(context), overwrite=True)
    parts = len(layout_for(program.name, family)[1].files)
    declared = len(embeddings) * parts
    if len(written_files) != declared:
        raise StageError(
            f"{program.title}: {count_of(declared, 'file')} for {count_of(len(embeddings), 'embedding')} expected; "
            f"written: {len(written_files)}"
        )
    by_name = {
        embedding.name: tuple(written_files[at * parts : (at + 1) * parts]) for at, embedding in enumerate(embeddings)
    }
    for embedding, several in by_name.items():
        for written in several:
            note(context, written.path, "embedding", program, written, embedding)
        context.warnings.extend([f"{embedding} for {program.title}: {loss}" for loss in several[0].losses])
    return by_name, (), declared


@dataclass(frozen=True)
class Loras:
    """The LoRA's path for a program; `parts` is a second file with what its loader leaves out and the script adds.

    `declared` counts the files that were written for it alone, `lost` is what the program does not apply.
    """

    path: str | None = None
    parts: str | None = None
    declared: int = 0
    lost: Sequence[str] = ()


def _lora(
    context: ExportContext, ready: Contents, program: Program, folder: Path, made: Made, taken: Collection[str]
) -> Loras:
    """The LoRA for a program, in files of its own where it needs other names of tensors.

    They have no name of `taken`: those of the embeddings' files in lower case.
    """
    if made.lora is None:
        return Loras()
    family = context.model.family
    tensors = for_program(ready.rest, program, family, context.model.pipe)
    if tensors is None:
        check_reading(context, made.lora, program)
        return Loras(_from(folder, made.lora), lost=left_out(context, made.lora, program))
    parts: dict[str, RawTensor] = {}
    if program.script is not None:
        tensors, parts = split_loaded(tensors, program, family)
    paths = {}
    for own, kind in ((tensors, "lora"), (parts, "lora_parts")):
        path = folder / f"{context.recipe.name}_{kind}.safetensors"
        while path.name.casefold() in taken:
            path = path.with_stem(f"{path.stem}_")
        if own:
            write_plain(context, own, path, facts=ready.rest)
            note(context, path, "lora", program)
            paths[kind] = path
    lost: list[str] = []
    if "lora" in paths:
        check_reading(context, paths["lora"], program)
        lost = left_out(context, paths["lora"], program)
    names = {kind: path.name for kind, path in paths.items()}
    return Loras(names.get("lora"), names.get("lora_parts"), len(paths), lost)


def _texts(context: ExportContext, files: Files, program: Program, folder: Path) -> None:
    """Write HOW-TO.txt, and the script where the program's users write code."""
    embeddings = files.embeddings or files.packs or files.by_hand
    if files.script is not None and (embeddings or files.lora or files.lora_parts or files.model_folder):
        base = Base(context.recipe.model, folder)
        _text(context, folder / files.script, diffusers_lines(context.model.family, files, base), program)
    _text(context, folder / "HOW-TO.txt", guide_text(program, files), program)


def _text(context: ExportContext, path: Path, text: str, program: Program) -> None:
    path.unlink(missing_ok=True)  # it may be a second name of a file elsewhere
    path.write_text(text, encoding="utf-8", newline="\n")
    note(context, path, "text", program)
