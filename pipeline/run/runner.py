"""A recipe becomes a run in a folder of its own, or goes on with one that was stopped; a report in any case."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from pivotune import __version__

from ..checks.preflight import require_preflight, run_preflight
from ..device import choose_threads, make_deterministic, pick_device
from ..distributed import Processes
from ..embeddings.norms import norm_statistics
from ..files import write_atomically, write_json
from ..launch import begin_processes, end_processes
from ..models.load import load_model
from ..recipe.model import Recipe
from ..records import Metrics, json_safe
from ..report.page import NAME as REPORT
from ..report.table import embedding_table
from .checkpoints import RESUME_HINT, Checkpoint, Checkpointer, Source
from .consistency import common_checkpoint, require_same_inputs, require_shardable
from .context import Run
from .execute import execute
from .manifest import inputs_of
from .outcome import FINISHING, as_stage_error, closing_lines, complete, finish_run_record
from .resume import restore_run
from .samples import draw_class_images
from .signals import interruptible, signals_caught
from .start import Start, begin_folder, refuse_foreign, run_folder_lock, say_start
from .warm_start import copy_from_source, open_source, source_again

Progress = Callable[[str], None]


@dataclass(frozen=True)
class RunResult:
    """Where a finished run lies, its report, and the table of embeddings for the command line."""

    folder: Path
    report: Path
    summary: str


def run_recipe(
    recipe: Recipe, *, out: Path | None, progress: Progress, bar: bool, fresh: bool = False,
    source: Path | None = None, force: bool = False, way: str | None = None, text: Path | None = None,
) -> RunResult:  # fmt: skip
    """Run every stage of a checked recipe into a folder of its own, or go on with an unfinished run of the same inputs.

    `fresh` begins anew even so. `source`, a run's folder or a checkpoint, is where a new run takes its beginning from;
    `force` runs where pre-flight finds that it cannot come to its end. `way` says what to do when a signal has stopped
    the run, where it is not that the same command goes on; `text` is the recipe's text, where it is not the file at its
    path. Raises StageError or ConvertError when a stage
    fails; manifest and report then say why.
    """
    with interruptible(), as_stage_error():
        return _run_recipe(
            recipe, out, progress, bar, fresh=fresh, source=source, force=force, way=way, text=text or recipe.path
        )


def _run_recipe(
    recipe: Recipe, out: Path | None, progress: Progress, bar: bool, *, fresh: bool, source: Path | None, force: bool,
    way: str | None, text: Path,
) -> RunResult:  # fmt: skip
    begin = time.monotonic()
    processes = begin_processes(recipe.device)
    require_shardable(recipe, sharding=processes.sharding)
    if not processes.main:
        progress, bar = _silent, False
    device = processes.device or pick_device(recipe.device)
    make_deterministic(recipe.seed, recipe.threads)
    processes.from_main(lambda: refuse_foreign(out))
    ahead = processes.from_main(lambda: run_preflight(recipe, out, device))
    require_preflight(ahead, progress, force=force)
    progress(f"loading {recipe.model.base} on {_places(device, processes)}")
    with processes.together():
        model = load_model(recipe.model, device)
        if recipe.threads is None:
            torch.set_num_threads(choose_threads(model.size))
    processes.from_main(lambda: draw_class_images(model, recipe, progress))
    with processes.together():
        statistics = {encoder.key: norm_statistics(encoder.table) for encoder in model.encoders}
        inputs = inputs_of(recipe, model, statistics, processes)
        begun = open_source(source, inputs, progress) if source else None
    require_same_inputs(inputs, processes)
    origin = begun.as_json if begun else None
    start = processes.from_main(lambda: begin_folder(recipe.name, out, inputs, fresh=fresh, source=origin))
    manifest = _manifest(recipe, text, inputs, start, ahead.facts, origin)
    with ExitStack() as stack:
        processes.from_main(lambda: stack.enter_context(run_folder_lock(start)))
        if (start.left or {}).get("status") == FINISHING:
            result = processes.from_main(lambda: _completed(start, progress))
            end_processes(processes)
            return result
        asked = stack.enter_context(signals_caught(progress))
        checkpoint, begun = _beginning(start, begun, manifest, processes, progress)
        say_start(start, (checkpoint.stage, checkpoint.step) if checkpoint else None, progress)
        rule = recipe.checkpoint
        way = way or (f"{RESUME_HINT} (leave out --fresh)" if fresh else RESUME_HINT)
        checkpointer = Checkpointer(start.folder, rule.every, rule.keep, asked, processes, way)
        run = Run(recipe, start.folder, model, statistics, checkpointer, progress, bar, processes=processes)
        run.source, run.files = begun, inputs["data"]["files"]
        run.warnings += ahead.warnings
        with processes.together():
            run.metrics = Metrics(start.folder, restore_run(run, checkpoint), write=processes.main)
        result = _run(run, text, manifest, begin) if processes.main else _follow(run)
        end_processes(processes)
        return result


def _beginning(
    start: Start, source: Source | None, manifest: dict[str, Any], processes: Processes, progress: Progress
) -> tuple[Checkpoint | None, Source | None]:
    """The checkpoint to go on from, the run's own or that of its source, and the source where it is needed still."""
    checkpoint = common_checkpoint(start.folder, processes, progress) if start.left else None
    if source is None:
        with processes.together():
            source = source_again(start.left or {}, checkpoint, manifest, progress)
    if source is not None and checkpoint is None:
        processes.from_main(lambda: _from_source(source, start.folder, manifest))
        checkpoint = source.point if source.whole else None
    return checkpoint, source


def _silent(text: str) -> None:
    """The main process speaks for all."""


def _places(device: torch.device, processes: Processes) -> str:
    return str(device) if processes.count == 1 else f"{processes.count} processes ({device.type})"


def _follow(run: Run) -> RunResult:
    """What the processes beside the main one do: everything but write."""
    with as_stage_error():
        execute(run, {})
    return RunResult(run.folder, run.folder / REPORT, "")


def _run(run: Run, text: Path, manifest: dict[str, Any], begin: float) -> RunResult:
    """Execute, and leave manifest and report whatever happens."""
    with finish_run_record(run, manifest, begin):
        write_atomically(run.folder / "recipe.toml", text.read_bytes())
        write_json(run.folder / "manifest.json", json_safe(manifest))
        manifest["stages"] = run.rows
        execute(run, manifest)
    return _result(run.folder, manifest)


def _result(folder: Path, manifest: dict[str, Any]) -> RunResult:
    return RunResult(folder, folder / REPORT, f"{embedding_table(manifest)}\n{closing_lines(manifest)}")


def _completed(start: Start, progress: Progress) -> RunResult:
    """The end of a run that an earlier process trained and exported whole."""
    progress(f"{start.folder} is trained and exported; completing its report and clean-up")
    with as_stage_error():
        return _result(start.folder, complete(start.folder, start.left or {}))


def _from_source(source: Source, folder: Path, manifest: dict[str, Any]) -> None:
    """Take over what the source measured and drew; the manifest comes first: whoever is killed meanwhile goes on."""
    write_json(folder / "manifest.json", json_safe(manifest))
    copy_from_source(source, folder)


def _manifest(
    recipe: Recipe,
    text: Path,
    inputs: dict[str, Any],
    start: Start,
    ahead: dict[str, Any],
    source: dict[str, Any] | None,
) -> dict[str, Any]:
    """The manifest of a run that begins, or goes on."""
    now = datetime.now(UTC).astimezone().isoformat(timespec="seconds")
    left = start.left or {}
    source = source or left.get("source")  # the same checkpoint, where it lies now
    return {
        "pivotune": __version__, "name": recipe.name, "recipe_file": str(recipe.path), **inputs,
        "recipe_sha256": hashlib.sha256(text.read_bytes()).hexdigest(), "status": "running", "error": None,
        "started": left.get("started", now), "resumed": [*left.get("resumed", []), *([now] if left else [])],
        "seconds": left.get("seconds", 0.0), "embeddings": [], "stages": [], "proofs": {}, "artefacts": [],
        "images": left.get("images", []), "warnings": [], "preflight": ahead, "source": source,
    }  # fmt: skip
