"""Runs a recipe in a folder of its own, or resumes an unfinished run; writes manifest and report in any case."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from pivotune import __version__

from ..checks.preflight import Preflight, require_preflight, run_preflight
from ..checks.survey import with_steps
from ..device import choose_threads, make_deterministic, pick_device
from ..distributed import Processes
from ..embeddings.norms import norm_statistics
from ..export.lora_base import merge_fixed_loras
from ..files import write_atomically, write_json
from ..launch import end_processes, join_processes
from ..models.load import Model, load_model
from ..recipe.model import Recipe
from ..records import REPORT, Metrics, json_safe
from ..report.table import embedding_table
from .checkpoints import RESUME_HINT, Checkpoint, Checkpointer, Source
from .consistency import common_checkpoint, require_one_process, require_same_inputs, require_shardable
from .context import RunContext, RunState, StageFunction
from .execute import execute
from .manifest import inputs_of
from .outcome import FINISHING, as_stage_error, closing_lines, complete, finish_run_record
from .resume import require_fitting
from .samples import draw_class_images, without_images
from .signals import catch_signals, interruptible
from .start import Start, create_run_folder, report_start, require_usable_folder, run_folder_lock

Progress = Callable[[str], None]


@dataclass(frozen=True)
class RunResult:
    """The folder of a finished run, its report, and the table of embeddings for the command line."""

    folder: Path
    report: Path
    summary: str


def run_recipe(
    recipe: Recipe, stages: Mapping[str, StageFunction], *, out: Path | None, progress: Progress, bar: bool,
    fresh: bool = False, source: Path | None = None, force: bool = False, resume_hint: str = RESUME_HINT,
    text: Path | None = None,
) -> RunResult:  # fmt: skip
    """Run every stage of a checked recipe into a folder of its own, or resume an unfinished run of the same inputs.

    `stages` has the functions by stage kind. `fresh` starts over instead of resuming; `source`, a run folder or a
    checkpoint, is a warm start; `force` ignores failed pre-flight checks. `resume_hint` is printed when a signal stops
    the run; `text` is the recipe file if it is not at its path. StageError or ConvertError if a stage fails.
    """
    begin, text = time.monotonic(), text or recipe.path
    with interruptible(), as_stage_error(), ExitStack() as stack:
        processes = join_processes(recipe.device)
        if not processes.main:
            progress, bar = _silent, False
        recipe, model, preflight = _prepare(with_steps(recipe), out, processes, progress, force=force)
        with processes.together():
            statistics = {encoder.key: norm_statistics(encoder.table) for encoder in model.encoders}
            inputs = inputs_of(recipe, model, statistics, processes)
            origin = _open_source(source, inputs, progress) if source else None
        require_same_inputs(inputs, processes)
        facts = origin.as_json if origin else None
        start = processes.from_main(lambda: create_run_folder(recipe.name, out, inputs, fresh=fresh, source=facts))
        manifest = _manifest(recipe, text, inputs, start, preflight.facts, facts)
        processes.from_main(lambda: stack.enter_context(run_folder_lock(start)))
        if (start.unfinished or {}).get("status") == FINISHING:
            result = processes.from_main(lambda: _complete(start, progress))
            end_processes(processes)
            return result
        request = stack.enter_context(catch_signals(progress))
        checkpoint, origin = _checkpoint_of(recipe, start, origin, manifest, processes, progress)
        hint = f"{resume_hint} (leave out --fresh)" if fresh and resume_hint is RESUME_HINT else resume_hint
        checkpointer = Checkpointer(start.folder, recipe.checkpoint, request, processes, hint)
        stored = checkpoint.facts["run"] if checkpoint else {}
        with processes.together():
            metrics = Metrics(start.folder, stored.get("metrics"), write=processes.main)
        context = RunContext(
            recipe, start.folder, model, statistics, checkpointer, metrics, progress, bar, processes, origin,
            inputs["data"]["files"],
        )  # fmt: skip
        state = RunState(checkpoint, loaded=set(stored.get("loaded", [])), warnings=list(preflight.warnings))
        with finish_run_record(context, manifest, begin) if processes.main else nullcontext():
            if processes.main:
                write_atomically(start.folder / "recipe.toml", text.read_bytes())
                write_json(start.folder / "manifest.json", json_safe(manifest))
            manifest["stages"] = state.rows
            execute(context, state, stages, manifest)
        end_processes(processes)
        return _result(start.folder, manifest) if processes.main else RunResult(start.folder, start.folder / REPORT, "")


def _prepare(
    recipe: Recipe, out: Path | None, processes: Processes, progress: Progress, *, force: bool
) -> tuple[Recipe, Model, Preflight]:
    """Check what can fail before the model is loaded, load it, and draw the class images that are missing.

    Fixed LoRAs are added to its weights, for class and sample images too.
    The recipe has no sample images where the model cannot draw.
    """
    with processes.together():  # one that refuses at once would leave another in the middle of joining
        require_one_process(recipe, processes.count)
        require_shardable(recipe, sharding=processes.sharding)
        device = processes.device or pick_device(recipe.device)
        make_deterministic(recipe.seed, recipe.threads)
    processes.from_main(lambda: require_usable_folder(out))
    preflight = processes.from_main(lambda: run_preflight(recipe, out, device))
    require_preflight(preflight, progress, force=force)
    where = str(device) if processes.count == 1 else f"{processes.count} processes ({device.type})"
    progress(f"loading {recipe.model.base} on {where}")
    with processes.together():
        model = load_model(recipe.model, device)
        merge_fixed_loras(model, recipe.fixed_loras)
        if recipe.threads is None:
            torch.set_num_threads(choose_threads(model.size))
    processes.from_main(lambda: draw_class_images(model, recipe, progress))
    return without_images(recipe, model, progress), model, preflight


def _open_source(path: Path, inputs: Mapping[str, Any], progress: Progress) -> Source:
    from .warm_start import open_source

    return open_source(path, inputs, progress)


def _checkpoint_of(
    recipe: Recipe, start: Start, source: Source | None, manifest: dict[str, Any], processes: Processes,
    progress: Progress,
) -> tuple[Checkpoint | None, Source | None]:  # fmt: skip
    """The checkpoint to resume from, the run's own or its source's, and the source where it is still needed."""
    checkpoint = common_checkpoint(start.folder, processes, progress) if start.unfinished else None
    if source is None and (start.unfinished or {}).get("source") is not None:
        from .warm_start import reopen_source

        with processes.together():
            source = reopen_source(start.unfinished or {}, checkpoint, manifest, progress)
    if source is not None and checkpoint is None:
        from .warm_start import copy_from_source

        def copy(source: Source = source) -> None:
            write_json(start.folder / "manifest.json", json_safe(manifest))  # first: a killed process is resumed
            copy_from_source(source, start.folder)

        processes.from_main(copy)
        checkpoint = source.point if source.continues else None
    if checkpoint is not None:
        with processes.together():
            require_fitting(checkpoint, recipe)
    report_start(start, (checkpoint.stage, checkpoint.step) if checkpoint else None, progress)
    return checkpoint, source


def _silent(text: str) -> None:
    """Only the main process prints."""


def _result(folder: Path, manifest: dict[str, Any]) -> RunResult:
    return RunResult(folder, folder / REPORT, f"{embedding_table(manifest)}\n{closing_lines(manifest)}")


def _complete(start: Start, progress: Progress) -> RunResult:
    """Finish a run that an earlier process trained and exported."""
    progress(f"{start.folder} is trained and exported; completing its report and clean-up")
    return _result(start.folder, complete(start.folder, start.unfinished or {}))


def _manifest(
    recipe: Recipe,
    text: Path,
    inputs: dict[str, Any],
    start: Start,
    ahead: dict[str, Any],
    source: dict[str, Any] | None,
) -> dict[str, Any]:
    """The manifest of a run that starts or is resumed."""
    now = datetime.now(UTC).astimezone().isoformat(timespec="seconds")
    left = start.unfinished or {}
    source = source or left.get("source")  # the same checkpoint by its current path
    return {
        "pivotune": __version__, "name": recipe.name, "recipe_file": str(recipe.path), **inputs,
        "recipe_sha256": hashlib.sha256(text.read_bytes()).hexdigest(), "status": "running", "error": None,
        "started": left.get("started", now), "resumed": [*left.get("resumed", []), *([now] if left else [])],
        "seconds": left.get("seconds", 0.0), "embeddings": [], "stages": [], "proofs": {}, "artefacts": [],
        "images": left.get("images", []), "warnings": [], "preflight": ahead, "source": source,
    }  # fmt: skip
