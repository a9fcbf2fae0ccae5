"""Pre-flight checks of a run: truncated captions, names, folders, images, disk and memory."""

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
from ..data.complete import require_complete
from ..data.images import open_image
from ..errors import RecipeError, StageError
from ..models.load import skeleton
from ..models.tokenizers import load_tokenizers
from ..recipe.model import Recipe
from ..recipe.options import ExportOptions, TrainOptions
from ..text import first_few, format_bytes
from .disk import Disk, disk_problems, disk_usage, output_folders, try_save, writes
from .memory import Memory, Needs, count_needs, memory_of, memory_problems
from .plan import MAX_EMBEDDINGS, Plan, make_plan
from .survey import stated_resolution

BARE = ("{stem}", "{embedding}")  # prompts of programs in which the name alone is the trigger


def truncation_problems(plan: Plan) -> tuple[list[str], list[str]]:
    """Errors for trained embeddings that are truncated in all of their captions, warnings for single captions."""
    always, warning = plan.always_truncated, plan.truncation_warning
    names = first_few(always, MAX_EMBEDDINGS)
    errors = [f"all captions of {names} are truncated before the embedding; move it towards the start{plan.or_chunks}"]
    return errors if always else [], [warning] if warning else []


def truncated_prompts(plan: Plan) -> Iterator[str]:
    """Warnings about sample prompts that are longer than a token limit."""
    for prompt in plan.prompts:
        over = [
            f"{count} tokens, the limit of {key} is {plan.limits[key]}"
            for key, count in prompt.tokens.items()
            if count > plan.limits[key]
        ]
        if over:
            yield f"samples.prompts: {prompt.before[:60]!r} is truncated: {'; '.join(over)}{plan.or_chunks}"


def large_embeddings(plan: Plan) -> Iterator[str]:
    """Warnings about embeddings that take half of the token limit or more."""
    for embedding, tokens_by_key in plan.embeddings.items():
        over = [
            f"{len(tokens.ids)} of the {plan.limits[key]} tokens of {key}"
            for key, tokens in tokens_by_key.items()
            if 2 * len(tokens.ids) >= plan.limits[key]
        ]
        if over:
            yield f"{embedding} takes {' and '.join(over)} in every prompt; reduce tokens to leave room for other text"


def taken_names(recipe: Recipe, tokenizers: Mapping[str, Any]) -> Iterator[str]:
    """Warnings about names that are a token of the vocabulary, for programs in which the name alone is the trigger.

    A1111 and similar programs use the embedding wherever the token occurs in a prompt; diffusers refuses such a name.
    """
    targets = [name for _, options in recipe.stages_with(ExportOptions) for name in options.targets]
    found: dict[str, list[str]] = {}
    for target in dict.fromkeys(targets):
        program = programs()[target]
        if program.prompt not in BARE:
            continue
        for embedding in recipe.embeddings:
            try:
                typed = program.prompted(safe_stem(embedding.placeholder, program.characters), embedding.placeholder)
            except ConvertError:
                continue  # reported by the check of the recipe
            if any(_is_token(typed, tokenizer) for tokenizer in tokenizers.values()):
                found.setdefault(target, []).append(typed)
    for names in {tuple(names) for names in found.values()}:
        where = ", ".join(target for target, typed in found.items() if tuple(typed) == names)
        yield (
            f"{first_few(names, MAX_EMBEDDINGS)}: a token of the vocabulary, so {where} would use the embedding "
            "wherever it occurs in a prompt; choose a placeholder that is not a single token"
        )


def _is_token(text: str, tokenizer: Any) -> bool:
    """Whether a text is one token of the vocabulary."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return len(ids) == 1 and ids[0] != tokenizer.unk_token_id


SECONDS = 2.0  # for decoding images; the others are decoded when they are encoded, before the first step
THREADS = 4


@dataclass
class Preflight:
    """Errors, warnings and notes; `facts` go into the manifest."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    disks: list[Disk] = field(default_factory=list)
    memory: Memory | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def add(self, found: tuple[Sequence[str], Sequence[str]]) -> None:
        self.errors += found[0]
        self.warnings += found[1]


def run_preflight(recipe: Recipe, out: Path | None, device: torch.device) -> Preflight:
    """Check embeddings, folders, images, disk and memory of a checked recipe; leaves no files.

    Checks that need the model (a single-file checkpoint whose configuration is on the hub) are skipped.
    """
    found = Preflight()
    for folder in output_folders(recipe, out):
        error = try_save(folder)
        if error is not None:
            text = f"cannot save {folder.content}: {error}"
            (found.errors if folder.required else found.warnings).append(text)
    plan = _make_plan(recipe, found)
    if plan is not None:
        found.errors += unreadable_images([caption.path for caption in plan.captions], found)
        estimate(recipe, plan, out, device, found)
    return found


def require_preflight(found: Preflight, say: Callable[[str], None], *, force: bool) -> None:
    """Print warnings and notes, and raise StageError with all errors; with `force` errors become warnings."""
    if force:
        found.warnings, found.errors = [*found.errors, *found.warnings], []
    for warning in found.warnings:
        say(f"warning: {warning}")
    for note in found.notes:
        say(f"note: {note}")
    if found.errors:
        errors = "\n  ".join(found.errors)
        raise StageError(f"pre-flight checks failed:\n  {errors}\n(--force starts anyway)")


def estimate(recipe: Recipe, plan: Plan, out: Path | None, device: torch.device, found: Preflight) -> None:
    """Estimates of disk space and memory, compared with what is available."""
    needs = _count_needs(recipe, plan, found)
    edge = stated_resolution(recipe.model)
    if needs is None or edge is None:
        return
    edge = max([edge, *(options.resolution or 0 for _, options in recipe.stages_with(TrainOptions))])
    folder = (out or Path("runs") / recipe.name).absolute()
    written = list(writes(recipe, needs, folder, plan.images, needs.channels, edge))
    found.disks = disk_usage(written, folder if out is not None else None)
    found.add(disk_problems(found.disks))
    found.memory = memory_of(recipe, needs, device, edge)
    found.add(memory_problems(found.memory, device))
    found.facts |= {
        "disk": [{"folder": str(disk.folder), "least": disk.least, "most": disk.most, "free": disk.free}
                 for disk in found.disks],
        "memory": None if found.memory is None else dict(vars(found.memory)),
    }  # fmt: skip


def _make_plan(recipe: Recipe, found: Preflight) -> Plan | None:
    try:
        tokenizers = load_tokenizers(recipe.model)
        plan = make_plan(recipe, tokenizers)
    except (StageError, ConvertError, RecipeError, ValueError):
        return None  # loading the model, or the stage itself, has a better message
    found.add(truncation_problems(plan))
    found.warnings += [*plan.long_captions, *truncated_prompts(plan), *large_embeddings(plan)]
    found.notes += taken_names(recipe, tokenizers)
    longest = {key: max((one.tokens[key] for one in plan.captions), default=0) for key in plan.limits}
    found.facts |= {
        "captions": len(plan.captions), "captions_with": plan.captions_with, "captions_truncated": len(plan.truncated),
        "longest_caption": longest, "token_limits": plan.limits,
    }  # fmt: skip
    return plan


def _count_needs(recipe: Recipe, plan: Plan, found: Preflight) -> Needs | None:
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


def unreadable_images(images: Sequence[Path], found: Preflight) -> Iterator[str]:
    """Errors of images that cannot be decoded, as far as time allows."""
    distinct, end = list(dict.fromkeys(images)), time.monotonic() + SECONDS

    def decode(path: Path) -> str | None:
        if time.monotonic() > end:
            return ""
        try:
            open_image(path)
            require_complete(path)
        except StageError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(THREADS) as threads:
        errors = list(threads.map(decode, distinct))
    found.facts["images_decoded"] = sum(text != "" for text in errors)
    yield from (text for text in errors if text)


def resource_lines(preflight: Preflight) -> Iterator[str]:
    """Lines about disk space and memory, then errors and warnings."""
    for disk in preflight.disks:
        need = f"{format_bytes(disk.least)} to {format_bytes(disk.most)}"
        yield f"Disk: {need} needed, {format_bytes(disk.free)} free in {disk.folder}"
    memory = preflight.memory
    if memory is not None:
        most = f" to {format_bytes(memory.most)}" if memory.most > memory.least else " without activations"
        free = f"{format_bytes(memory.free)} of {format_bytes(memory.total)} free"
        yield f"Memory: {format_bytes(memory.least)}{most} needed, {free}"
    yield from (f"  error: {text}" for text in preflight.errors)
    yield from (f"  warning: {text}" for text in preflight.warnings)
