"""Checks of export targets: families, packs, names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...converters.errors import ConvertError
from ...converters.families import Family
from ...converters.names import safe_stem
from ...converters.programs import Program, programs
from ...converters.programs.loras import applies_encoder
from ..embeddings.placeholders import spelling
from ..recipe.model import Recipe
from ..recipe.options import ExportOptions, RescaleOptions, TrainOptions
from ..recipe.problem import Finding, KeyPath


def target_findings(recipe: Recipe, family: Family | None) -> Iterator[Finding]:
    """Targets that do not support the family or packs, and placeholders that a target cannot use."""
    has_lora = any(options.trained_loras for _, options in recipe.stages_with(TrainOptions))
    seen: set[tuple[int, str]] = set()
    for index, options in recipe.stages_with(ExportOptions):
        for number, target in enumerate(options.targets):
            program = programs()[target]
            key_path: KeyPath = ("stage", index, "targets", number)
            by_hand = program.script is not None and options.files == "each"
            if family is not None and family.name not in program.layouts and not by_hand:
                if not has_lora or program.script is not None or not program.takes_lora(family):
                    yield Finding(key_path, _family_message(program, family))
                    continue
                yield from _lora_alone(key_path, recipe, program, family)
            elif options.files != "each" and not _loads_packs(program, options, has_lora):
                yield Finding(key_path, _packs_message(program, options.files))
            if family is not None:
                yield from _encoder_loras(key_path, recipe, program, family)
        yield from _names(recipe, options, seen, family)
        bundled = [name for name in options.targets if programs()[name].embeddings_in_loras.startswith("yes")]
        packed = [name for name in bundled if options.files != "each" and programs()[name].several]
        if (has_lora and options.bundle and bundled) or packed:
            yield from _dots(recipe, packed if not has_lora else bundled)


NORMS_OF_INPUTS = ("median", "mean", "spread")


def output_findings(recipe: Recipe, family: Family | None) -> Iterator[Finding]:
    """What output embeddings cannot have: other programs than OneTrainer, packs, norms of the vocabulary."""
    if not recipe.outputs:
        return
    if family is not None and all(encoder.output is None for encoder in family.encoders):
        for index, embedding in enumerate(recipe.embeddings):
            if embedding.output:
                text = f"no program knows output embeddings for {family.title}; remove it, to train input vectors"
                yield Finding(("embedding", index, "output"), text)
    for index, options in recipe.stages_with(ExportOptions):
        for number, target in enumerate(options.targets):
            if not programs()[target].outputs:
                text = f"{programs()[target].title} cannot use output embeddings; only OneTrainer can"
                yield Finding(("stage", index, "targets", number), text)
        if options.files != "each":
            yield Finding(("stage", index, "files"), "output embeddings are written with files = 'each' only")
    rules: list[tuple[KeyPath, object]] = [
        (("embedding", index, "preserve_norm"), embedding.preserve_norm)
        for index, embedding in enumerate(recipe.embeddings)
        if embedding.output
    ]
    rules += [(("stage", at, "preserve_norm"), one.preserve_norm) for at, one in recipe.stages_with(TrainOptions)]
    rules += [(("stage", at, "to"), one.to) for at, one in recipe.stages_with(RescaleOptions)]
    for key_path, rule in rules:
        if rule in NORMS_OF_INPUTS:
            text = f"{rule!r} is of the vocabulary, not of an encoder's output; use 'initial', a number or a band"
            yield Finding(key_path, text)


def _lora_alone(key_path: KeyPath, recipe: Recipe, program: Program, family: Family) -> Iterator[Finding]:
    """A program that gets the LoRA, but cannot use the embeddings."""
    if recipe.embeddings:
        text = f"{_no_embeddings(program, family)}; {program.name}/ will have the LoRA alone, for prompts without them"
        yield Finding(key_path, text, "warning")


def _encoder_loras(key_path: KeyPath, recipe: Recipe, program: Program, family: Family) -> Iterator[Finding]:
    """LoRAs of text encoders that a program does not apply. A script adds what its program's loader leaves out."""
    if program.script is not None:
        return
    tables = [table for _, options in recipe.stages_with(TrainOptions) for table in options.trained_loras]
    parts = [part for table in tables for part in table.parts if part in family.widths]
    lost = [part for part in dict.fromkeys(parts) if not applies_encoder(program, family, part)]
    if lost:
        how = "does not apply" if applies_encoder(program, family, lost[0]) is False else "is not known to apply"
        text = f"{program.title} {how} a LoRA of the text encoder {' and '.join(lost)} of {family.title}"
        yield Finding(key_path, f"{text}; train the denoiser alone for it", "warning")


def _loads_packs(program: Program, options: ExportOptions, has_lora: bool) -> bool:
    """Whether a program uses many embeddings from one file: a pack, or a LoRA with bundled embeddings."""
    return program.several is not None or (
        has_lora and options.bundle and program.embeddings_in_loras.startswith("yes")
    )


def _packs_message(program: Program, files: str) -> str:
    able = [name for name, other in programs().items() if other.several]
    return (
        f"{program.title} loads one embedding per file, not files = '{files}'; remove this target and use "
        f"`pivotune split --for {program.name}` on the exported files, or set files = 'each'; "
        f"programs that load packs: {', '.join(able)}"
    )


def _no_embeddings(program: Program, family: Family) -> str:
    known = program.no_embeddings(family)
    unread = f"how {program.title} reads embeddings for {family.title} is not known"
    return program.refuses.get(
        family.name, f"{program.title} does not support embeddings for {family.title}" if known else unread
    )


def _family_message(program: Program, family: Family) -> str:
    others = [name for name, other in programs().items() if family.name in other.layouts]
    hint = ", ".join(others) or "none; targets = [] writes plain files, one per embedding"
    return f"{_no_embeddings(program, family)}; supported by: {hint}"


def _names(
    recipe: Recipe, options: ExportOptions, seen: set[tuple[int, str]], family: Family | None
) -> Iterator[Finding]:
    able = [name for name in options.targets if family is None or family.name in programs()[name].layouts]
    for index, embedding in enumerate(recipe.embeddings):
        key_path: KeyPath = ("embedding", index, "placeholder")
        alone = able if options.files == "each" else ()  # in a pack the name is the placeholder
        try:
            plain, stems = safe_stem(embedding.placeholder), list(_stems(embedding.placeholder, alone))
        except ConvertError as error:
            if (index, "") not in seen:
                seen.add((index, ""))
                yield Finding(key_path, str(error))
            continue
        typed: dict[str, list[str]] = {}
        for target, stem in stems:
            program = programs()[target]
            changed = stem != plain and "{stem}" in program.prompt
            if changed and (index, target) not in seen:
                seen.add((index, target))
                typed.setdefault(program.prompted(stem, embedding.placeholder), []).append(target)
        for prompt, targets in typed.items():
            text = f"{', '.join(targets)} cannot use all characters of '{embedding.placeholder}'; type {prompt} there"
            yield Finding(key_path, text, "warning")


def _stems(name: str, targets: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The file name of an embedding for each target."""
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
                f"'{embedding.placeholder}' has a dot, which ends the name in LoRA files for {', '.join(targets)}; "
                "choose another placeholder, or set bundle = false"
            )
            yield Finding(("embedding", index, "placeholder"), text)


def same_files(recipe: Recipe) -> Iterator[Finding]:
    """Embeddings that would be written to files of the same name, also on case-insensitive file systems."""
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
