"""Which programs will load a file: what the user types there, what is left out, what breaks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .embedding import Contents
from .families import Family
from .programs import Program, programs, reads, reads_lora
from .programs.reading import Reading
from .slots import outputs
from .stored import Stored
from .tensor import is_zero


class Verdict(NamedTuple):
    """`loads` is `yes`, `partly` or `no`; `prompt` is what the user types, empty if nothing loads."""

    loads: str
    prompt: str
    notes: tuple[str, ...] = ()


def verdicts(stored: Stored, contents: Contents, families: Sequence[Family], is_lora: bool) -> dict[str, Verdict]:
    """A verdict a program. Where several families remain possible, the one that goes best counts and is named."""
    return {name: _best(program, stored, contents, families, is_lora) for name, program in programs().items()}


def _best(program: Program, stored: Stored, contents: Contents, families: Sequence[Family], is_lora: bool) -> Verdict:
    judge = _lora if is_lora else _embedding
    found = []
    for family in families:
        verdict = judge(program, stored, contents, family)
        if len(families) > 1:
            verdict = Verdict(verdict.loads, verdict.prompt, (f"for {family.title}", *verdict.notes))
        found.append(verdict)
    if not found:
        return Verdict("no", "", ("no model that is known here has text encoders of these widths",))
    return min(found, key=lambda verdict: ("yes", "partly", "no").index(verdict.loads))


def _embedding(program: Program, stored: Stored, contents: Contents, family: Family) -> Verdict:
    if family.name not in program.layouts:
        return Verdict("no", "", (program.refuses.get(family.name, f"no embeddings for {family.title}"),))
    reading = reads(program.name, stored, family.widths)
    if reading.refusal:
        return Verdict("no", "", (reading.refusal,))
    notes = [f"left out: {', '.join(reading.dropped[:6])}"] if reading.dropped else []
    for embedding, vectors in reading.embeddings.items():
        used = {key.removesuffix("_out") for key in vectors}
        notes += [f"{key} gets nothing" for key in family.widths if key not in used and _can_take(program, family, key)]
        notes += [f"{key} is all zeros: the embedding does nothing" for key in vectors if is_zero(vectors[key])]
        if "{stem}" in program.prompt and not program.can_hold(embedding):
            notes.append("its prompts cannot hold this name; rename the file")
    if len(contents.embeddings) > len(reading.embeddings):
        notes.append(f"{len(contents.embeddings)} embeddings in the file, of which it sees {len(reading.embeddings)}")
    prompts = [program.prompted(embedding, embedding) for embedding in reading.embeddings]
    return Verdict("partly" if notes else "yes", ", ".join(prompts), tuple(notes))


def _lora(program: Program, stored: Stored, contents: Contents, family: Family) -> Verdict:
    if program.runs is not None and family.name not in program.runs:
        return Verdict("no", "", (f"cannot run {family.title}",))
    reading = reads_lora(program.name, stored, family.widths)
    if reading.refusal:
        return Verdict("no", "", (reading.refusal,))
    prompt = program.lora_prompt.format(stem=stored.stem, file=stored.path.name)
    mute = [embedding for embedding in reading.embeddings if not program.can_hold(embedding, in_lora=True)]
    notes = _lora_notes(program, reading, contents)
    if mute:
        notes = (*notes, f"its prompts read something else in {', '.join(mute[:6])}; rename")
    found = all(embedding.name in reading.embeddings for embedding in contents.embeddings)
    whole = found and not reading.dropped and not mute
    return Verdict("yes" if whole else "partly", " ".join((prompt, *reading.embeddings)), notes)


def _lora_notes(program: Program, reading: Reading, contents: Contents) -> tuple[str, ...]:
    notes = []
    if contents.embeddings:
        notes.append(f"embeddings in a LoRA: {program.embeddings_in_loras}")
    lost = [embedding.name for embedding in contents.embeddings if embedding.name not in reading.embeddings]
    if lost and reading.embeddings:
        notes.append(f"not found under their names: {', '.join(lost[:6])}")
    for embedding in contents.embeddings:
        if outputs(embedding.vectors):
            notes.append(f"{embedding.name}: output vectors, which OneTrainer alone can use")
    return tuple(notes)


def _can_take(program: Program, family: Family, key: str) -> bool:
    return any(key in keys for keys in program.layouts[family.name].files)
