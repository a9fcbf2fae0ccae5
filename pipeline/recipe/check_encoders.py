"""Words for some of a model's text encoders only: are these its encoders, and who can load such words?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...converters.families import Family
from ...converters.programs import Layout, Program, programs, reads
from ...converters.stored import Stored
from ...converters.tensor import RawTensor
from .model import Recipe
from .nearest import did_you_mean
from .problem import Finding


def encoder_findings(recipe: Recipe, family: Family | None) -> Iterator[Finding]:
    """What is wrong with `encoders` of the inject stage, and what the export's targets make of it."""
    if family is None:
        return
    for index, stage in enumerate(recipe.stages):
        chosen = stage.options.get("encoders") if stage.kind == "inject" else None
        if chosen is None:
            continue
        for number, key in enumerate(chosen):
            if key not in family.widths:
                text = f"{family.title} has no text encoder '{key}'{did_you_mean(key, family.widths)}"
                yield Finding(("stage", index, "encoders", number), text)
        if set(chosen) < family.widths.keys():
            yield from _targets(recipe, family, [key for key in family.widths if key in chosen])


def _targets(recipe: Recipe, family: Family, chosen: list[str]) -> Iterator[Finding]:
    for index, stage in enumerate(recipe.stages):
        for number, target in enumerate(stage.options["targets"] if stage.kind == "export" else ()):
            program = programs()[target]
            layout = program.layouts.get(family.name)
            if layout is None:
                continue
            why = refusal(program, layout, family, chosen)
            if why:
                text = f"{program.title} cannot load a word that has vectors for {', '.join(chosen)} only: {why}"
                yield Finding(("stage", index, "targets", number), text)


def refusal(program: Program, layout: Layout, family: Family, chosen: list[str]) -> str:
    """Why a program would not load a word with vectors for these encoders; empty when it would."""
    for keys in layout.files:
        held = {keys[key].replace("{word}", "word"): family.widths[key] for key in keys if key in chosen}
        if not held:
            return "it takes a file for each encoder"
        tensors = {name: RawTensor("F32", (1, width), bytes(4 * width)) for name, width in held.items()}
        sizes = {key: family.widths[key] for key in keys} if len(layout.files) > 1 else family.widths
        reading = reads(program.name, Stored(Path("word.safetensors"), tensors), sizes)
        if reading.breaks:
            return reading.breaks
        vectors = next(iter(reading.words.values()))
        if any(key in keys and key not in vectors for key in chosen):
            return "it would not find them"
    return ""
