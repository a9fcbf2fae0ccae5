"""Which modules of a LoRA each program applies: by how they are called, by their kind, and as a whole."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import NamedTuple

from ..comfyui_layers import comfyui_layer
from ..errors import count_of
from ..families import Family
from ..lora_modules import LoraModule, kinds_of
from ..stored import Stored
from . import Program, refuses_lora

SHOWN = 3  # names or kinds in a note
SPELLINGS = (" lora_A", " lora_down")  # what a name of a program may end in


class Applied(NamedTuple):
    """How many of a LoRA's modules a program applies; `notes` say what is left out, `refusal` why it applies none."""

    modules: int
    applied: int
    notes: tuple[str, ...] = ()
    refusal: str = ""


def applied(program: Program, file: Stored, family: Family) -> Applied | None:
    """What `program` applies of a LoRA for a model of `family`; None if there are no rules for that family."""
    if why := program.lora_refuses.get(family.name):
        return Applied(len(file.modules), 0, (), why)
    named = looks_for(program, family)
    if named is None:
        return None
    modules = file.modules
    known = [module for module in modules if named(module)]
    able = [module for module in known if module.kind in program.lora_kinds]
    others = [module for module in known if module.kind not in program.lora_kinds]
    if not known:
        return Applied(len(modules), 0, (), _no_names(program, modules))
    if others and program.other_kinds == "refused":
        return Applied(len(modules), 0, (), f"it refuses the whole LoRA because of {_kinds(others)} modules")
    if not able:
        return Applied(len(modules), 0, (), f"it has no {_kinds(others)}")
    used = {key for module in able for key in module.keys}
    refusal = refuses_lora(program.name, file, family, modules, [name for name in file.tensors if name not in used])
    notes = tuple(_notes(program, modules, known, others, able))
    return Applied(len(modules), 0 if refusal else len(able), () if refusal else notes, refusal)


# A layer of each kind of text encoder, by the start of its key in families.
_LAYERS = {"clip": "text_model.encoder.layers.0.mlp.fc1", "t5": "encoder.block.0.layer.0.SelfAttention.q",
           "umt5": "encoder.block.0.layer.0.SelfAttention.q"}  # fmt: skip
_LLM = "model.layers.0.self_attn.q_proj"


def applies_encoder(program: Program, family: Family, key: str) -> bool | None:
    """Whether `program` applies the LoRA of a text encoder as we export it; None if that is not known."""
    if family.name in program.lora_refuses:
        return False
    named = looks_for(program, family)
    if named is None:
        return None
    attribute = next(encoder.module for encoder in family.encoders if encoder.key == key)
    layer = next((layer for start, layer in _LAYERS.items() if key.startswith(start)), _LLM)
    layout = program.lora_layouts.get(family.name, program.lora_layouts.get("*"))
    if layout == "comfyui":
        name = comfyui_layer(family, attribute, layer).name
    elif layout == "peft":
        name = f"{attribute}.{layer}"
    else:
        name = f"{family.lora_prefixes[attribute]}_{layer.replace('.', '_')}"
    return named(LoraModule(name, "LoRA", False, (f"{name}.{'lora_A' if layout else 'lora_down'}.weight",)))


def looks_for(program: Program, family: Family) -> Callable[[LoraModule], bool] | None:
    """Whether a module's name is among those that a program looks for in LoRAs of a family; None: not known."""
    return _named(program.name, family.name, tuple(program.lora_names_of(family.name)))


@cache
def _named(program: str, family: str, names: tuple[str, ...]) -> Callable[[LoraModule], bool] | None:
    """Whether a module's name is among those of a program; None without any."""
    if not names:
        return None
    spelled = tuple(name for name in names if name.endswith(SPELLINGS))
    plain = re.compile("|".join(f"(?:{name})" for name in names if name not in spelled) or "(?!)").fullmatch
    if not spelled:
        return lambda module: plain(module.name) is not None
    exact = re.compile("|".join(f"(?:{name})" for name in spelled)).fullmatch
    return lambda module: bool(plain(module.name) or exact(module.name + _spelling(module)))


def _spelling(module: LoraModule) -> str:
    """How its matrices are called, as one of SPELLINGS."""
    return next((part for part in SPELLINGS if any(f".{part[1:]}." in key for key in module.keys)), "")


def _no_names(program: Program, modules: Sequence[LoraModule]) -> str:
    if not modules:
        return "no module of a LoRA in it"
    text = f"it applies 0 of {count_of(len(modules), 'module')}"
    return f"{text}: it does not look for names like {modules[0].name[:60]!r}"


def _notes(
    program: Program,
    modules: Sequence[LoraModule],
    known: Sequence[LoraModule],
    others: Sequence[LoraModule],
    able: Sequence[LoraModule],
) -> Iterable[str]:
    if len(known) < len(modules):
        strange = [module.name[:60] for module in modules if module not in known]
        yield f"{_share(strange, modules)} not applied, as {strange[0]!r}"
    if others:
        yield f"{_share(others, modules)} not applied: {_kinds(others)}"
    weighted = [module for module in able if module.dora]
    ends = tuple(program.dora_keys)
    if any(not any(end in key for end in ends for key in module.keys) for module in weighted):
        yield f"the magnitudes of DoRA are left out of {count_of(len(weighted), 'module')}, which changes the result"


def _share(part: Sequence[object], modules: Sequence[LoraModule]) -> str:
    return f"{len(part)} of {count_of(len(modules), 'module')} {'is' if len(part) == 1 else 'are'}"


def _kinds(modules: Iterable[LoraModule]) -> str:
    kinds = kinds_of(modules)
    return ", ".join(kinds[:SHOWN]) + (" and others" if len(kinds) > SHOWN else "")
