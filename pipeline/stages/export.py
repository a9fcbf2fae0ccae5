"""Stage `export`: the words, and the LoRA, as files for each program; a file counts once it was read back."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ...converters.dtypes import convert
from ...converters.embedding import Contents, Embedding
from ...converters.errors import ConvertError
from ...converters.programs import Program, programs
from ...converters.tensor import RawTensor
from ...converters.write import Written, write_words
from ..errors import StageError
from ..export.guide import Files, bundle_trigger, diffusers_lines, guide_text
from ..export.lora import write_bundle, write_plain
from ..export.standalone import STANDALONE, widths, write_standalone
from ..models.family import MICRO
from ..run.hashes import sha256
from ..run.state import Run
from ..words.raw import from_raw, to_raw

STORED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
SCRIPTS = {"diffusers": "load.py"}  # programs whose users write code
TORCH_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def export(
    run: Run,
    contents: Contents,
    *,
    targets: Sequence[str] = ("a1111", "comfyui", "diffusers"),
    bundle: bool = True,
    dtype: str = "float32",
) -> Contents:
    """Write `exports/`: `<name>_embeddings/<word>.safetensors`, the LoRA, and a folder for each target program.

    With `bundle`, programs that read words inside LoRAs get them so. Raises ConvertError when a program cannot hold a
    word or a file, read as its program reads it, does not give the vectors that went in.
    """
    if not contents.embeddings:
        raise StageError("there is no word to export")
    run.eject()
    folder = run.folder / "exports"
    ready = _in_dtype(_described(run, contents), STORED[dtype], run)
    standalone = {}
    for word in ready.embeddings:
        written = write_standalone(run, word, folder / f"{run.recipe.name}_embeddings")
        standalone[word.name] = written.path
        _note(run, written.path, "word", programs()[STANDALONE], written, word.name)
    lora = folder / f"{run.recipe.name}.safetensors" if ready.rest else None
    if lora is not None:
        write_plain(run, ready.rest, lora)
        _note(run, lora, "lora", None, None, None)
    for target in targets:
        _for_program(run, ready, programs()[target], folder / target, lora, bundle)
    run.data |= {"standalone": standalone, "lora": lora, **_count(run, ready, targets, bundle)}
    return ready


def _count(run: Run, ready: Contents, targets: Sequence[str], bundle: bool) -> dict[str, int]:
    """What the recipe declares, against what lies on disk with the hash it had when it was verified."""
    whole = [bool(ready.rest) and bundle and programs()[name].words_in_loras.startswith("yes") for name in targets]
    declared = len(ready.embeddings) * (1 + whole.count(False)) + whole.count(True) + bool(ready.rest)
    files = [row for row in run.artefacts if row["kind"] != "text"]
    there = [row for row in files if sha256(run.folder / row["path"]) == row["sha256"]]
    distinct = {(row["kind"], row["program"], row["word"], Path(row["path"]).parent.name) for row in there}
    if len(distinct) != declared:
        raise StageError(f"{declared} exports are declared, {len(distinct)} are there and verified")
    return {"exports_declared": declared, "exports_verified": len(distinct)}


def _for_program(run: Run, ready: Contents, program: Program, folder: Path, lora: Path | None, bundle: bool) -> None:
    """All files of one program, and the text that says what to do with them."""
    folder.mkdir(parents=True, exist_ok=True)
    family, name = run.model.family, run.recipe.name
    if lora is not None and bundle and program.words_in_loras.startswith("yes"):
        path = folder / f"{name}.safetensors"
        write_bundle(run, ready.rest, ready.embeddings, path)
        names = tuple(word.name for word in ready.embeddings)
        _note(run, path, "bundle", program, None, None)
        run.artefacts[-1]["trigger"] = bundle_trigger(path.name, names)
        files = Files({}, path.name, names)
    else:
        words = write_words(ready.embeddings, program.name, family, folder, widths=widths(run))
        each = len(words) // len(ready.embeddings)
        by_name = {word.name: tuple(words[at * each : (at + 1) * each]) for at, word in enumerate(ready.embeddings)}
        for word, several in by_name.items():
            for written in several:
                _note(run, written.path, "word", program, written, word)
                run.warnings += [f"{word} for {program.title}: {loss}" for loss in written.losses]
        script = SCRIPTS.get(program.name)
        files = Files(by_name, os.path.relpath(lora, folder) if lora else None, script=script)
    if files.script is not None:
        spec = run.recipe.model
        base = str(run.model.path) if spec.base == MICRO else spec.base
        _text(run, folder / files.script, diffusers_lines(family, files, base, spec), program)
    _text(run, folder / "HOW-TO.txt", guide_text(program, files), program)


def _described(run: Run, contents: Contents) -> Contents:
    """The words with what made them; nothing in it changes between two runs of the same recipe."""
    facts = {
        "pivotune.recipe": run.recipe.name,
        "pivotune.seed": str(run.recipe.seed),
        "pivotune.model": run.recipe.model.base,
        "pivotune.family": run.model.family.name,
    }
    words = tuple(
        replace(word, metadata=facts | {"pivotune.initial_text": word.metadata.get("initial_text", "")})
        for word in contents.embeddings
    )
    return replace(contents, embeddings=words)


def _in_dtype(contents: Contents, dtype: str, run: Run) -> Contents:
    """Everything in the data type of the files. What becomes zero is said; what would overflow is an error."""

    def converted(raw: RawTensor, what: str) -> RawTensor:
        made, lost = convert(raw, dtype, what)
        if lost:
            run.warnings.append(f"{what}: {lost} values are too small for {dtype} and became zero")
        return made

    def word_of(word: Embedding) -> Embedding:
        return replace(word, vectors={key: converted(raw, f"{word.name} {key}") for key, raw in word.vectors.items()})

    rest = {
        name: raw if name.endswith(".alpha") else _by_torch(raw, dtype, name) for name, raw in contents.rest.items()
    }
    return replace(contents, embeddings=tuple(word_of(word) for word in contents.embeddings), rest=rest)


def _by_torch(raw: RawTensor, dtype: str, name: str) -> RawTensor:
    """A LoRA's tensor in another type, rounded to nearest; ConvertError where a value would overflow."""
    before = from_raw(raw)
    after = before.to(TORCH_TYPES[dtype])
    if bool((after.isinf() & ~before.isinf()).any()):
        raise ConvertError(f"{name}: has values too large for {dtype}; write it as bfloat16 or float32")
    return to_raw(after)


def _text(run: Run, path: Path, text: str, program: Program) -> None:
    path.write_text(text, encoding="utf-8")
    _note(run, path, "text", program, None, None)


def _note(run: Run, path: Path, kind: str, program: Program | None, written: Written | None, word: str | None) -> None:
    """A row of the manifest's artefacts."""
    put = None if program is None else program.lora_folder if kind == "bundle" else program.folder
    row: dict[str, Any] = {
        "path": path.relative_to(run.folder).as_posix(),
        "sha256": sha256(path),
        "bytes": path.stat().st_size,
        "kind": kind,
        "program": program.name if program else None,
        "dialect": written.dialect if written else None,
        "trigger": written.trigger if written else None,
        "put_in": None if kind == "text" else put,
        "word": word,
    }
    run.artefacts.append(row)
