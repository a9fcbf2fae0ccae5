"""All that is found out before a run begins, and what is said of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...converters.errors import ConvertError
from ..data.open import open_picture
from ..data.survey import native_resolution
from ..errors import RecipeError, StageError
from ..models.skeleton import skeleton
from ..models.tokenizers import load_tokenizers
from ..recipe.model import Recipe
from ..recipe.plan import Plan, make_plan
from .disk import Room, room_findings, rooms, writes
from .memory import Memory, memory_findings, memory_of
from .needs import Needs, count_needs
from .places import places_of, try_save
from .words import cut_prompts, large_words, taken_names, unseen

SECONDS = 2.0  # so long pictures are decoded; the others are when they are encoded, which is before the first step
THREADS = 4


@dataclass
class Preflight:
    """What stops the run, what is worth a warning, what may be as it should; `facts` is what the manifest keeps."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rooms: list[Room] = field(default_factory=list)
    memory: Memory | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def add(self, found: tuple[Sequence[str], Sequence[str]]) -> None:
        self.errors += found[0]
        self.warnings += found[1]


def look_ahead(recipe: Recipe, out: Path | None, device: torch.device) -> Preflight:
    """Look at words, folders, pictures, disk and memory of a checked recipe; nothing is left behind.

    What cannot be told without loading the model (a single file whose configs only the hub has) is left open.
    """
    found = Preflight()
    for place in places_of(recipe, out):
        refused = try_save(place)
        if refused is not None:
            what = f"{place.what} cannot be saved: {refused}"
            (found.errors if place.needed else found.warnings).append(what)
    plan = _planned(recipe, found)
    if plan is not None:
        found.errors += undecodable([caption.path for caption in plan.captions], found)
        estimate(recipe, plan, out, device, found)
    return found


def hold(found: Preflight, say: Callable[[str], None], *, anyway: bool) -> None:
    """Say warnings and notes, and raise StageError with all errors; with `anyway` they are warnings too."""
    if anyway:
        found.warnings, found.errors = [*found.errors, *found.warnings], []
    for warning in found.warnings:
        say(f"warning: {warning}")
    for note in found.notes:
        say(f"note: {note}")
    if found.errors:
        more = "\n(--anyway begins all the same)"
        raise StageError("this run cannot come to its end:\n  " + "\n  ".join(found.errors) + more)


def estimate(recipe: Recipe, plan: Plan, out: Path | None, device: torch.device, found: Preflight) -> None:
    """Disk and memory that the run will take, and what there is of them."""
    needs = _counted(recipe, plan, found)
    edge = native_resolution(recipe.model)
    if needs is None or edge is None:
        return
    edge = max([edge, *(s.options["resolution"] or 0 for s in recipe.stages if s.kind == "train")])
    folder = (out or Path("runs") / recipe.name).absolute()
    written = list(writes(recipe, needs, folder, plan.pictures, needs.channels, edge))
    found.rooms = rooms(written, folder if out is not None else None)
    found.add(room_findings(found.rooms))
    found.memory = memory_of(recipe, needs, device, edge)
    found.add(memory_findings(found.memory, device))
    found.facts |= {
        "disk": [{"folder": str(room.folder), "least": room.least, "most": room.most, "free": room.free}
                 for room in found.rooms],
        "memory": None if found.memory is None else dict(vars(found.memory)),
    }  # fmt: skip


def _planned(recipe: Recipe, found: Preflight) -> Plan | None:
    try:
        tokenizers = load_tokenizers(recipe.model)
        plan = make_plan(recipe, tokenizers)
    except (StageError, ConvertError, RecipeError, ValueError):
        return None  # loading the model, or the stage itself, says it better
    found.add(unseen(plan))
    found.warnings += [*cut_prompts(plan), *large_words(plan)]
    found.notes += taken_names(recipe, tokenizers)
    longest = {key: max((one.tokens[key] for one in plan.captions), default=0) for key in plan.limits}
    found.facts |= {
        "captions": len(plan.captions), "captions_with": plan.holding, "captions_cut": len(plan.lost),
        "longest_caption": longest, "token_limits": plan.limits,
    }  # fmt: skip
    return plan


def _counted(recipe: Recipe, plan: Plan, found: Preflight) -> Needs | None:
    vectors = {word: {key: len(made.ids) for key, made in by_key.items()} for word, by_key in plan.words.items()}
    try:
        model = skeleton(recipe.model)
    except StageError:
        return None
    try:
        return count_needs(recipe, model, vectors)
    except StageError as error:
        found.errors.append(str(error))
        return None


def undecodable(pictures: Sequence[Path], found: Preflight) -> Iterator[str]:
    """What is wrong with the pictures that could be decoded in the time there is."""
    distinct, end = list(dict.fromkeys(pictures)), time.monotonic() + SECONDS

    def tried(path: Path) -> str | None:
        if time.monotonic() > end:
            return ""
        try:
            open_picture(path)
        except StageError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(THREADS) as threads:
        said = list(threads.map(tried, distinct))
    found.facts["pictures_decoded"] = sum(text != "" for text in said)
    yield from (text for text in said if text)
