"""Whether the embeddings are seen: captions that hold them, tokens that encoders cut off, names that are taken."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...converters.errors import ConvertError
from ...converters.names import safe_stem
from ...converters.programs import programs
from ..data.images import open_image
from ..errors import RecipeError, StageError
from ..models.load import skeleton
from ..models.tokenizers import load_tokenizers
from ..recipe.model import Recipe
from ..recipe.options import ExportOptions, TrainOptions
from ..text import format_bytes
from .disk import Room, places_of, room_findings, rooms, try_save, writes
from .memory import Memory, Needs, count_needs, memory_findings, memory_of
from .plan import Plan, make_plan, some
from .survey import stated_resolution

BARE = ("{stem}", "{embedding}")  # prompts of programs that know an embedding by its bare name


def unseen(plan: Plan) -> tuple[list[str], list[str]]:
    """Errors for trained embeddings that stand behind the token limit wherever they stand, warnings for some places."""
    errors, warnings = [], []
    lost = plan.lost
    if lost:
        first = lost[0]
        where = f"in {len(lost)} of {len(plan.captions)} captions an embedding stands behind the token limit, where it is not"
        such = f"(the caption of {first.image}: {', '.join(first.lost)})"
        warnings.append(f"{where} seen {such}; put embeddings further forward")
    trained = {embedding.placeholder for embedding in plan.recipe.embeddings if embedding.train}
    gone = [embedding for embedding in plan.never_seen if embedding in trained]
    if gone:
        errors.append(
            f"behind the token limit in every caption that holds them: {some(gone)}; put them further forward"
        )
    return errors, warnings


def cut_prompts(plan: Plan) -> Iterator[str]:
    """Warnings about prompts for the report that are longer than an encoder reads."""
    for prompt in plan.prompts:
        over = [
            f"{key} reads {plan.limits[key]} of its {count} tokens"
            for key, count in prompt.tokens.items()
            if count > plan.limits[key]
        ]
        if over:
            yield f"samples.prompts: {prompt.before[:60]!r} is cut off: {', '.join(over)}"


def large_embeddings(plan: Plan) -> Iterator[str]:
    """Warnings about embeddings that take half of a prompt or more: little else can be said beside them."""
    for embedding, made in plan.embeddings.items():
        over = [
            f"{len(tokens.ids)} of the {plan.limits[key]} tokens that {key} reads"
            for key, tokens in made.items()
            if 2 * len(tokens.ids) >= plan.limits[key]
        ]
        if over:
            yield f"{embedding} takes {' and '.join(over)} of every prompt; fewer tokens leave room for other embeddings"


def taken_names(recipe: Recipe, tokenizers: Mapping[str, Any]) -> Iterator[str]:
    """A warning about names that are embeddings of the model's own, for programs that know an embedding by its bare
    name.

    A1111 and its kin put the vectors wherever the name's tokens stand in a prompt; diffusers refuses such a name.
    """
    asked = [name for _, options in recipe.stages_with(ExportOptions) for name in options.targets]
    found: dict[str, list[str]] = {}
    for target in dict.fromkeys(asked):
        program = programs()[target]
        if program.prompt not in BARE:
            continue
        for embedding in recipe.embeddings:
            try:
                typed = program.prompted(safe_stem(embedding.placeholder, program.characters), embedding.placeholder)
            except ConvertError:
                continue  # said by the recipe's check
            if any(_is_token(typed, tokenizer) for tokenizer in tokenizers.values()):
                found.setdefault(target, []).append(typed)
    for names in {tuple(names) for names in found.values()}:
        targets = ", ".join(target for target, typed in found.items() if tuple(typed) == names)
        yield (
            f"the model knows {some(names)} as an embedding of its own, which {targets} would take for the new one "
            "wherever it stands in a prompt; a placeholder that is no embedding is safer"
        )


def _is_token(text: str, tokenizer: Any) -> bool:
    """Whether a text is one piece of the vocabulary, a whole embedding."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return len(ids) == 1 and ids[0] != tokenizer.unk_token_id


SECONDS = 2.0  # so long images are decoded; the others are when they are encoded, which is before the first step
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


def run_preflight(recipe: Recipe, out: Path | None, device: torch.device) -> Preflight:
    """Look at embeddings, folders, images, disk and memory of a checked recipe; nothing is left behind.

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


def require_preflight(found: Preflight, say: Callable[[str], None], *, force: bool) -> None:
    """Say warnings and notes, and raise StageError with all errors; with `force` they are warnings too."""
    if force:
        found.warnings, found.errors = [*found.errors, *found.warnings], []
    for warning in found.warnings:
        say(f"warning: {warning}")
    for note in found.notes:
        say(f"note: {note}")
    if found.errors:
        more = "\n(--force begins all the same)"
        raise StageError("this run cannot come to its end:\n  " + "\n  ".join(found.errors) + more)


def estimate(recipe: Recipe, plan: Plan, out: Path | None, device: torch.device, found: Preflight) -> None:
    """Disk and memory that the run will take, and what there is of them."""
    needs = _counted(recipe, plan, found)
    edge = stated_resolution(recipe.model)
    if needs is None or edge is None:
        return
    edge = max([edge, *(options.resolution or 0 for _, options in recipe.stages_with(TrainOptions))])
    folder = (out or Path("runs") / recipe.name).absolute()
    written = list(writes(recipe, needs, folder, plan.images, needs.channels, edge))
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
    found.warnings += [*cut_prompts(plan), *large_embeddings(plan)]
    found.notes += taken_names(recipe, tokenizers)
    longest = {key: max((one.tokens[key] for one in plan.captions), default=0) for key in plan.limits}
    found.facts |= {
        "captions": len(plan.captions), "captions_with": plan.holding, "captions_cut": len(plan.lost),
        "longest_caption": longest, "token_limits": plan.limits,
    }  # fmt: skip
    return plan


def _counted(recipe: Recipe, plan: Plan, found: Preflight) -> Needs | None:
    vectors = {
        embedding: {key: len(made.ids) for key, made in by_key.items()} for embedding, by_key in plan.embeddings.items()
    }
    try:
        model = skeleton(recipe.model)
    except StageError:
        return None
    try:
        return count_needs(recipe, model, vectors)
    except StageError as error:
        found.errors.append(str(error))
        return None


def undecodable(images: Sequence[Path], found: Preflight) -> Iterator[str]:
    """What is wrong with the images that could be decoded in the time there is."""
    distinct, end = list(dict.fromkeys(images)), time.monotonic() + SECONDS

    def tried(path: Path) -> str | None:
        if time.monotonic() > end:
            return ""
        try:
            open_image(path)
        except StageError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(THREADS) as threads:
        said = list(threads.map(tried, distinct))
    found.facts["images_decoded"] = sum(text != "" for text in said)
    yield from (text for text in said if text)


def resource_lines(ahead: Preflight) -> Iterator[str]:
    """What the run takes of each file system and of the device, and what there is; then what is wrong with it."""
    for room in ahead.rooms:
        yield f"Disk: {format_bytes(room.least)} to {format_bytes(room.most)} in {room.folder}, where {format_bytes(room.free)} are free"
    if ahead.memory is not None:
        about = ahead.memory
        most = f" to {format_bytes(about.most)}" if about.most > about.least else ", activations not counted"
        yield f"Memory: {format_bytes(about.least)}{most}; {format_bytes(about.free)} of {format_bytes(about.total)} are free"
    yield from (f"  error: {text}" for text in ahead.errors)
    yield from (f"  warning: {text}" for text in ahead.warnings)
