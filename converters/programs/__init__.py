"""Programs that embeddings are for: what each writes and reads, as data, and how it reads, as one small module each."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import NamedTuple, Protocol, cast

from ..stored import Stored
from .reading import Reading

NAMES = ("a1111", "forge", "sdnext", "comfyui", "invokeai", "diffusers", "onetrainer", "kohya")


class Reads(Protocol):
    """A module of this folder that imitates how one program reads a file, as an embedding and as a LoRA."""

    def reads(self, file: Stored, widths: dict[str, int]) -> Reading:
        """What the program makes of the file when a model with these encoders is loaded."""

    def reads_lora(self, file: Stored, widths: dict[str, int]) -> Reading:
        """What it makes of the embeddings in a LoRA; `breaks` then says why the whole LoRA is refused."""


class Layout(NamedTuple):
    """How a program wants one family: the dialect's name, and for each file encoder key to tensor name.

    `{embedding}` as a tensor name stands for the embedding itself. A second file is called `<stem>_2`.
    """

    dialect: str
    files: tuple[dict[str, str], ...]


@dataclass(frozen=True, eq=False, repr=False)
class Program:
    """A target: where its files go, what the user types, which characters a file name may have.

    `how` has a sentence for `embedding`, `lora` and `model` (one file), and `folder` where it loads models as diffusers
    has them: what the user does with `{files}`, and `{type}`.

    `dora` says whether it reads what a DoRA learns beside a LoRA. `lora_layouts` maps families (`*`: all) whose LoRAs
    it wants otherwise than in kohya's layout with diffusers' names: `peft`, or `sgm` for Stability's names of blocks.
    `several` is the dialect of a file with many embeddings of which it can use each, where there is one.
    `characters` are those of file names, `embedding_characters` those of embeddings in LoRAs, which have no file (None:
    all).
    """

    name: str
    title: str
    folder: str
    lora_folder: str
    how: dict[str, str]
    prompt: str
    lora_prompt: str
    characters: str | None
    runs: list[str] | None  # families whose models it can run at all; None: all that are known here
    layouts: dict[str, Layout]
    embeddings_in_loras: str
    reserved: tuple[str, ...] = ()
    embedding_characters: str | None = None
    outputs: bool = False
    several: str | None = None
    one_count: bool = True
    dora: bool = True
    lora_layouts: dict[str, str] = field(default_factory=dict)
    refuses: dict[str, str] = field(default_factory=dict)

    def prompted(self, stem: str, embedding: str) -> str:
        """What the user types for the embedding of a file with this stem."""
        return self.prompt.format(stem=stem, embedding=embedding)

    def can_hold(self, name: str, *, in_lora: bool = False) -> bool:
        """Whether a prompt can have this name of a file (or of an embedding in a LoRA) in it and mean the embedding."""
        allowed = self.embedding_characters if in_lora else self.characters
        return name not in self.reserved and (allowed is None or _made_of(allowed)(name) is not None)


@cache
def _made_of(characters: str) -> Callable[[str], re.Match[str] | None]:
    return re.compile(f"(?:{characters})*").fullmatch


@cache
def programs() -> dict[str, Program]:
    """All programs, by the name that `--for` and a recipe's `targets` take."""
    return {name: _program(name) for name in NAMES}


def _program(name: str) -> Program:
    data = json.loads(Path(__file__).with_name(f"{name}.json").read_text("utf-8"))
    layouts = {
        family: Layout(layout["dialect"], tuple(layout["files"])) for family, layout in data.pop("layouts").items()
    }
    data["reserved"] = tuple(data.get("reserved", ()))
    return Program(name=name, layouts=layouts, **data)


def reads(program: str, file: Stored, widths: dict[str, int]) -> Reading:
    """What `program` makes of `file` with a model whose encoders have these widths (encoder key to width)."""
    return _module(program).reads(file, widths)


def reads_lora(program: str, file: Stored, widths: dict[str, int]) -> Reading:
    """As `reads`, for a LoRA file in the program's folder of LoRAs: its embeddings, and whether the LoRA loads at
    all.
    """
    return _module(program).reads_lora(file, widths)


@cache
def _module(program: str) -> Reads:
    return cast(Reads, import_module(f".{program}", __package__))
