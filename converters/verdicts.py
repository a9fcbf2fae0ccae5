"""Which programs load a file: what the user types there, what is left out, what fails, and what is not known."""

from __future__ import annotations

from collections.abc import Sequence

from .embedding import Contents
from .families import Family
from .lora_renaming import renamed_layout
from .programs import Program, mixed_counts, programs, reads, reads_lora
from .programs.loras import applied
from .programs.reading import Reading
from .programs.verdict import ORDER, UNTYPED, Verdict
from .slots import outputs, split_out
from .stored import Stored
from .tensor import value_problem


def verdicts(stored: Stored, contents: Contents, families: Sequence[Family], is_lora: bool) -> dict[str, Verdict]:
    """A verdict a program. Where several families are possible, the best verdict counts and its family is named."""
    return {name: _best(program, stored, contents, families, is_lora) for name, program in programs().items()}


def _best(program: Program, stored: Stored, contents: Contents, families: Sequence[Family], is_lora: bool) -> Verdict:
    judge = _lora if is_lora else _embedding
    found = []
    for family in families:
        verdict = judge(program, stored, contents, family)
        if len(families) > 1:
            verdict = verdict._replace(notes=(f"for {family.title}", *verdict.notes))
        found.append(verdict)
    if not found:
        what = "which model this LoRA is for" if is_lora else "which model has text encoders of these widths"
        return Verdict("not known", "", (f"{what} is not known",))
    return min(found, key=lambda verdict: ORDER.index(verdict.loads))


def _embedding(program: Program, stored: Stored, contents: Contents, family: Family) -> Verdict:
    reading = reads(program.name, stored, family.widths)
    if family.name not in program.layouts and (reading.refusal or not program.may_read(family)):
        why = program.no_embeddings(family)
        return Verdict("no" if why else "not known", "", (why or f"{program.title} with {family.title} is not known",))
    if reading.refusal:
        return Verdict("no", "", (reading.refusal,))
    vectors = [(key, tensor) for found in reading.embeddings.values() for key, tensor in found.items()]
    problems = [f"{key} {problem}" for key, tensor in vectors if (problem := value_problem(tensor))]
    zeros = [problem for problem in problems if problem.endswith("zero")]
    if len(zeros) < len(problems) or len(zeros) == len(vectors):
        return Verdict("no", "", tuple(problems))
    notes = [*_embedding_notes(program, reading, contents, family), *zeros]
    prompts = [program.prompted(embedding, embedding) for embedding in reading.embeddings]
    return Verdict("partly" if notes else "yes", ", ".join(prompts), tuple(notes), program.after_prompt)


def _embedding_notes(program: Program, reading: Reading, contents: Contents, family: Family) -> list[str]:
    notes = [*reading.notes]
    if reading.dropped:
        notes.append(f"left out: {', '.join(reading.dropped[:6])}")
    for embedding, vectors in reading.embeddings.items():
        used = {split_out(key)[0] for key in vectors}
        missing = [key for key in family.widths if key not in used and _can_take(program, family, key)]
        there = {split_out(key)[0] for one in contents.embeddings if one.name == embedding for key in one.vectors}
        for key in missing:
            why = f"its {key} vectors are not found" if key in there else f"no {key} vectors"
            notes.append(f"{why}: no effect on that text encoder")
        counts = sorted({tensor.shape[0] for tensor in vectors.values() if len(tensor.shape) > 1})
        if program.one_count and len(counts) > 1:
            notes.append(mixed_counts(program, counts))
        if "{stem}" in program.prompt and not program.can_hold(embedding):
            notes.append(UNTYPED)
    if len(contents.embeddings) > len(reading.embeddings):
        notes.append(f"uses {len(reading.embeddings)} of the {len(contents.embeddings)} embeddings in the file")
    return notes


def _lora(program: Program, stored: Stored, contents: Contents, family: Family) -> Verdict:
    if program.runs is not None and family.name not in program.runs:
        return Verdict("no", "", (f"cannot run {family.title}",))
    layers = applied(program, stored, family)
    if layers is None:
        return Verdict("not known", "", (f"LoRAs for {family.title} in {program.title}",))
    reading = reads_lora(program.name, stored, family.widths)
    if reading.refusal or layers.refusal:
        notes = [reading.refusal or layers.refusal]
        if layers.refusal and renamed_layout(stored, family) is not None:
            notes.append(f"retarget --for {program.name} renames its modules")
        return Verdict("no", "", tuple(notes))
    prompt = program.lora_prompt.format(stem=stored.stem, file=stored.path.name)
    mute = [embedding for embedding in reading.embeddings if not program.can_hold(embedding, in_lora=True)]
    notes = [*layers.notes, *_lora_notes(program, reading, contents)]
    if mute:
        notes.append(f"its prompts read {', '.join(mute[:6])} differently; rename")
    found = all(embedding.name in reading.embeddings for embedding in contents.embeddings)
    whole = found and not reading.dropped and not mute and not layers.notes
    return Verdict("yes" if whole else "partly", " ".join((prompt, *reading.embeddings)), tuple(notes))


def _lora_notes(program: Program, reading: Reading, contents: Contents) -> list[str]:
    notes = []
    if contents.embeddings:
        notes.append(f"embeddings in a LoRA: {program.embeddings_in_loras}")
    lost = [embedding.name for embedding in contents.embeddings if embedding.name not in reading.embeddings]
    if lost and reading.embeddings:
        notes.append(f"not found under their names: {', '.join(lost[:6])}")
    for embedding in contents.embeddings:
        if outputs(embedding.vectors):
            notes.append(f"{embedding.name}: output vectors, which OneTrainer alone can use")
    return notes


def _can_take(program: Program, family: Family, key: str) -> bool:
    layout = program.layouts.get(family.name)
    return layout is None or any(key in keys for keys in layout.files)
