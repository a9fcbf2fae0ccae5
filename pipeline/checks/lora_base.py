"""Checks of `lora.base`, by the header of the file alone, and of LoRAs that are not trained."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ...converters import safetensors_file
from ...converters.comfyui_layers import has_own_names
from ...converters.errors import ConvertError
from ...converters.families import Family
from ...converters.lora import lora_families
from ...converters.lora_plain import plain_modules
from ..recipe.model import Recipe
from ..recipe.options import LoraOptions, TrainOptions
from ..recipe.problem import Finding, KeyPath

OWN_NAMES = re.compile(r"(^|[._])(double|single|joint)_blocks[._]|attention[._]qkv$")  # of FLUX, SD 3, Z-Image


def lora_base_findings(recipe: Recipe, family: Family | None) -> Iterator[Finding]:
    """Base files that cannot be trained on, keys that they answer, and fixed LoRAs that are not those of the run."""
    earlier: dict[str, str | None] = {}  # part to the base of the LoRA that an earlier stage has trained on it
    for index, options in recipe.stages_with(TrainOptions):
        key_path: KeyPath = ("stage", index, "lora")
        for number, table in enumerate(options.lora):
            yield from _key_findings((*key_path, number), table)
            if table.base is not None:
                yield from _file_findings((*key_path, number), table, Path(table.base), family)
        for number, table in enumerate(options.lora):
            before = [earlier[part] for part in table.parts if table.train and part in earlier]
            if any(base != table.base for base in before):
                text = "the LoRA of an earlier stage on this part has another base; use the same, or train in one stage"
                yield Finding((*key_path, number, "base"), text)
        earlier |= {part: table.base for table in options.trained_loras for part in table.parts}
        yield from _fixed_findings(key_path, options, recipe)


def _key_findings(key_path: KeyPath, table: LoraOptions) -> Iterator[Finding]:
    if not table.train and table.base is None:
        yield Finding((*key_path, "train"), "train = false needs base, the file of the LoRA")
    if table.train and table.strength != 1:
        text = "strength is of a LoRA with train = false; remove it, a LoRA is trained with strength 1"
        yield Finding((*key_path, "strength"), text)
    if table.base is None:
        return
    for key in ("alpha", "targets", "containing", "excluding"):
        if getattr(table, key) not in (None, ()):
            yield Finding((*key_path, key), f"with base, {key} is that of the file; remove it")
    if table.dora:
        yield Finding((*key_path, "dora"), "with base, the LoRA is that of the file, which is no DoRA; remove it")


def _file_findings(key_path: KeyPath, table: LoraOptions, path: Path, family: Family | None) -> Iterator[Finding]:
    try:
        if not path.is_file():
            raise ConvertError(f"{path} does not exist" if not path.exists() else f"{path} is not a file")
        tensors, metadata = safetensors_file.read(path, cached=0)
    except ConvertError as error:
        yield Finding((*key_path, "base"), str(error))
        return
    try:
        modules = plain_modules(tensors, metadata)
    except ConvertError as error:
        yield Finding((*key_path, "base"), f"{path.name} {error}")
        return
    own = next((name for name in modules if OWN_NAMES.search(name)), None)
    if own is not None and family is not None and not has_own_names(family):
        text = f"{path.name} names layers as the model's own code ({own}), where one layer is several of diffusers'"
        yield Finding((*key_path, "base"), f"{text}; not supported for {family.title}: use a LoRA in PEFT's layout")
        return  # these names do not always tell the family
    possible = lora_families(tensors, metadata)
    if family is not None and possible and family.name not in possible:
        yield Finding((*key_path, "base"), f"{path.name} is a LoRA for {' or '.join(possible)}, not for {family.title}")
    ranks = sorted({tensors[module.down].shape[0] for module in modules.values()})
    if table.rank is not None and ranks != [table.rank]:
        shown = ", ".join(map(str, ranks))
        yield Finding((*key_path, "rank"), f"{path.name} has rank {shown}, not {table.rank}; remove rank")


def _fixed_findings(key_path: KeyPath, options: TrainOptions, recipe: Recipe) -> Iterator[Finding]:
    """A fixed LoRA is part of the model of the whole run."""

    def applied(tables: tuple[LoraOptions, ...]) -> list[tuple[str | None, float, tuple[str, ...]]]:
        return [(table.base, table.strength, table.parts) for table in tables]

    if applied(options.fixed_loras) != applied(recipe.fixed_loras):
        text = "LoRAs with train = false are added to the model for the whole run; write the same in every train stage"
        yield Finding(key_path, text)
    if recipe.fixed_loras and options.finetune:
        text = "not supported with a LoRA with train = false, which would be in the exported model; remove one of them"
        yield Finding((*key_path[:-1], "finetune"), text)
    if recipe.fixed_loras and any(table.dora for table in options.trained_loras):
        text = "dora is not supported with a LoRA with train = false, on which its magnitudes would depend; remove one"
        yield Finding(key_path, text)
