"""Can the programs that a recipe exports for use what it asks, and under which names?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...converters.errors import ConvertError
from ...converters.families import Family
from ...converters.names import safe_stem
from ...converters.programs import Program, programs
from ..embeddings.placeholders import spelling
from ..recipe.model import Recipe
from ..recipe.options import ExportOptions, TrainOptions
from ..recipe.problem import Finding, Place


def target_findings(recipe: Recipe, family: Family | None) -> Iterator[Finding]:
    """Targets that do not fit the family, embeddings that a target cannot be called by."""
    has_lora = any(options.lora for _, options in recipe.stages_with(TrainOptions))
    seen: set[tuple[int, str]] = set()
    for index, options in recipe.stages_with(ExportOptions):
        for number, target in enumerate(options.targets):
            program = programs()[target]
            place: Place = ("stage", index, "targets", number)
            if family is not None and family.name not in program.layouts:
                yield Finding(place, _unfit(program, family))
            elif options.files != "each" and not _takes_packs(program, options, has_lora):
                yield Finding(place, _one_embedding(program, options.files))
        yield from _names(recipe, options, seen)
        bundled = [name for name in options.targets if programs()[name].embeddings_in_loras.startswith("yes")]
        packed = [name for name in bundled if options.files != "each" and programs()[name].several]
        if (has_lora and options.bundle and bundled) or packed:
            yield from _dots(recipe, packed if not has_lora else bundled)


def _takes_packs(program: Program, options: ExportOptions, has_lora: bool) -> bool:
    """Whether it uses many embeddings from one file: a pack, or the LoRA that holds them all."""
    return program.several is not None or (
        has_lora and options.bundle and program.embeddings_in_loras.startswith("yes")
    )


def _one_embedding(program: Program, files: str) -> str:
    able = [name for name, other in programs().items() if other.several]
    return (
        f"{program.title} takes one embedding from a file, so files = '{files}' is nothing for it: leave it out and use "
        f"`pivotune split --for {program.name}` on what is written, or take files = 'each'; "
        f"programs that use packs: {', '.join(able)}"
    )


def _unfit(program: Program, family: Family) -> str:
    cause = program.refuses.get(family.name, f"{program.title} takes no embeddings for {family.title}")
    others = [name for name, other in programs().items() if family.name in other.layouts]
    return f"{cause}; programs that do: {', '.join(others) or 'none'}"


def _names(recipe: Recipe, options: ExportOptions, seen: set[tuple[int, str]]) -> Iterator[Finding]:
    for index, embedding in enumerate(recipe.embeddings):
        place: Place = ("embedding", index, "placeholder")
        alone = options.targets if options.files == "each" else ()  # in a pack an embedding is typed as it is
        try:
            plain, stems = safe_stem(embedding.placeholder), list(_stems(embedding.placeholder, alone))
        except ConvertError as error:
            if (index, "") not in seen:
                seen.add((index, ""))
                yield Finding(place, str(error))
            continue
        typed: dict[str, list[str]] = {}
        for target, stem in stems:
            program = programs()[target]
            changed = stem != plain and "{stem}" in program.prompt
            if changed and (index, target) not in seen:
                seen.add((index, target))
                typed.setdefault(program.prompted(stem, embedding.placeholder), []).append(target)
        for prompt, targets in typed.items():
            text = f"'{embedding.placeholder}' holds what {', '.join(targets)} cannot take; there people type {prompt}"
            yield Finding(place, text, "warning")


def _stems(name: str, targets: Sequence[str]) -> Iterator[tuple[str, str]]:
    """What each target calls the file of an embedding; targets that take the same characters have the same name."""
    known: dict[str | None, str] = {}
    for target in targets:
        program = programs()[target]
        if program.characters not in known:
            known[program.characters] = safe_stem(name, program.characters)
        stem = known[program.characters]
        yield target, f"{stem}_" if stem in program.reserved else stem


def _dots(recipe: Recipe, targets: list[str]) -> Iterator[Finding]:
    for index, embedding in enumerate(recipe.embeddings):
        if "." in embedding.placeholder:
            text = (
                f"'{embedding.placeholder}' has a dot, at which {', '.join(targets)} would cut it inside the LoRA file; "
                "take another placeholder, or bundle = false"
            )
            yield Finding(("embedding", index, "placeholder"), text)


def same_files(recipe: Recipe) -> Iterator[Finding]:
    """Embeddings that would be written to files of the same name, on systems where case counts or not."""
    files: dict[str, str] = {}
    for index, embedding in enumerate(recipe.embeddings):
        try:
            stem = safe_stem(embedding.placeholder)
        except ConvertError:
            continue
        other = files.setdefault(stem.casefold(), embedding.placeholder)
        if spelling(other) != spelling(embedding.placeholder):
            text = f"'{embedding.placeholder}' and '{other}' would both be written to {stem}.safetensors; rename one"
            yield Finding(("embedding", index, "placeholder"), text)
