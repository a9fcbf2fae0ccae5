"""Programs that embeddings are for: what each writes and reads, as data, and how it reads, as one small module each."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, cast

from ...schemas import schema
from ..families import Family
from ..lora_modules import LoraModule
from ..stored import Stored
from .reading import Reading

NAMES = tuple(schema("stages/export.json")["properties"]["targets"]["items"]["enum"])  # what a recipe may name


class Reads(Protocol):
    """A module of this folder that imitates how one program reads a file, as an embedding and as a LoRA."""

    def reads(self, file: Stored, widths: dict[str, int]) -> Reading:
        """What the program makes of the file when a model with these encoders is loaded."""

    def reads_lora(self, file: Stored, widths: dict[str, int]) -> Reading:
        """What it makes of the embeddings in a LoRA; `refusal` says why the whole LoRA is not loaded."""


class Layout(NamedTuple):
    """How a program wants one family: the dialect's name, and for each file encoder key to tensor name.

    `{embedding}` as a tensor name stands for the embedding itself. A second file is called `<stem>_2`. `token_ids`: by
    tensor name, the token id that the program reads for each vector in a second tokenizer.
    """

    dialect: str
    files: tuple[dict[str, str], ...]
    token_ids: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True, eq=False, repr=False)
class Program:
    """A target: where its files go, what the user types, which characters a file name may have.

    `how` has a sentence for `embedding`, `lora` and `model` (one file), and `folder` where it loads models as diffusers
    has them: what the user does with `{files}`, and `{type}`.

    `runs` are the families whose models it runs (None: not known for the others). `dora`: it reads DoRA's magnitudes,
    under the names `dora_keys`. `lora_layouts` maps families (`*`: all) to the layout it needs instead of kohya's with
    diffusers' names: `peft`, `comfyui`, or `sgm` for Stability's names of blocks. `lora_names` has, for families, the
    names of modules it applies (or the program whose loader it uses; one that ends in ` lora_A` or ` lora_down` is for
    matrices that are called so), `lora_refuses` why it applies none, `lora_kinds` the kinds of `lora_modules`; those of
    `other_kinds` are `skipped`, or the whole LoRA is `refused`. `several` is the dialect of a file with many embeddings
    all of which it can use. `characters` are those of file names, `embedding_characters` those of embeddings in LoRAs,
    which have no file (None: all). `images`: it reads embeddings in images. `lower_case`: tokens of several vectors
    must have no upper-case letters. `after_prompt` says what must follow an embedding's prompt. `long_prompts`: `yes`
    if it encodes long prompts of CLIP encoders in chunks of 75 tokens, `no` if it truncates them, empty if it is not
    known. `script` is the name of a script that exports have for it, as its users write code. `module` is the module
    of this folder that reads as the program does (empty: the one of its own name). A program whose data has `like`
    takes all that it does not say itself from that other program, its module too.
    """

    name: str
    title: str
    folder: str
    lora_folder: str
    how: dict[str, str]
    prompt: str
    lora_prompt: str
    characters: str | None
    runs: list[str] | None
    layouts: dict[str, Layout]
    embeddings_in_loras: str
    reserved: tuple[str, ...] = ()
    embedding_characters: str | None = None
    outputs: bool = False
    several: str | None = None
    one_count: bool = True
    dora: bool = True
    dora_keys: tuple[str, ...] = ("dora_scale",)
    lora_layouts: dict[str, str] = field(default_factory=dict)
    lora_names: dict[str, list[str] | str] = field(default_factory=dict)
    lora_refuses: dict[str, str] = field(default_factory=dict)
    lora_kinds: tuple[str, ...] = ()
    other_kinds: str = "skipped"
    images: bool = False
    lower_case: bool = False
    after_prompt: str = ""
    long_prompts: str = ""
    script: str | None = None
    module: str = ""
    refuses: dict[str, str] = field(default_factory=dict)

    def may_read(self, family: Family) -> bool:
        """Whether some files load for a family without a layout: its reason is of its own, and the program runs it."""
        return family.name in self.refuses and (self.runs is None or family.name in self.runs)

    def no_embeddings(self, family: Family) -> str:
        """Why the program uses no embeddings of a family without a layout; empty if that is not known."""
        if self.runs is not None and family.name not in self.runs:
            return self.refuses.get(family.name, f"{self.title} cannot run {family.title}")
        return self.refuses.get(family.name, self.refuses.get("*", ""))

    def lora_names_of(self, family: str) -> list[str]:
        """Regular expressions of the modules that the program looks for in a LoRA of a family; none: not known."""
        names = next((names for families, names in self.lora_names.items() if family in families.split()), [])
        return programs()[names].lora_names_of(family) if isinstance(names, str) else names

    def takes_lora(self, family: Family) -> bool:
        """Whether it can be a target for a LoRA of a family whose embeddings it has no layout for."""
        return family.name in self.lora_layouts or "*" in self.lora_layouts

    def prompted(self, stem: str, embedding: str) -> str:
        """What the user types for the embedding of a file with this stem."""
        return self.prompt.format(stem=stem, embedding=embedding)

    def can_hold(self, name: str, *, in_lora: bool = False) -> bool:
        """Whether a prompt can have this name of a file (or of an embedding in a LoRA) in it and mean the embedding."""
        allowed = self.embedding_characters if in_lora else self.characters
        return name not in self.reserved and (allowed is None or _made_of(allowed)(name) is not None)


def mixed_counts(program: Program, counts: Sequence[int]) -> str:
    """What to say of an embedding with different numbers of vectors in its encoders."""
    return f"{' and '.join(map(str, counts))} vectors in its text encoders, which {program.title} mixes up"


@cache
def _made_of(characters: str) -> Callable[[str], re.Match[str] | None]:
    return re.compile(f"(?:{characters})*").fullmatch


@cache
def programs() -> dict[str, Program]:
    """All programs, by the name that `--for` and a recipe's `targets` take."""
    return {name: _program(name) for name in NAMES}


def _program(name: str) -> Program:
    data = _data(name)
    layouts = {
        family: Layout(layout["dialect"], tuple(layout["files"]), layout.get("token_ids", {}))
        for family, layout in data.pop("layouts").items()
    }
    for key in ("reserved", "lora_kinds", "dora_keys"):
        if key in data:
            data[key] = tuple(data[key])
    return Program(name=name, layouts=layouts, **data)


def _data(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(Path(__file__).with_name(f"{name}.json").read_text("utf-8"))
    like = data.pop("like", None)
    return {**_data(like), "module": like, **data} if like else data


def reads(program: str, file: Stored, widths: dict[str, int]) -> Reading:
    """What `program` makes of `file` with a model whose encoders have these widths (encoder key to width)."""
    if file.container == "image" and not programs()[program].images:
        return Reading(refusal=f"{programs()[program].title} reads no embeddings in images")
    return _module(program).reads(file, widths)


def reads_lora(program: str, file: Stored, widths: dict[str, int]) -> Reading:
    """As `reads`, for a LoRA file in the program's folder of LoRAs: its embeddings, and whether the LoRA loads at
    all.
    """
    return _module(program).reads_lora(file, widths)


def refuses_lora(
    program: str, file: Stored, family: Family, modules: Sequence[LoraModule], unused: Sequence[str]
) -> str:
    """Why `program` applies nothing of a LoRA some of whose modules it knows; `unused` are tensors that belong to none
    of those.
    """
    check = getattr(_module(program), "refuses_lora", None)
    return check(file, family, modules, unused) if check is not None else ""


@cache
def _module(program: str) -> Reads:
    return cast(Reads, import_module(f".{programs()[program].module or program}", __package__))
