"""A recipe becomes a run: the stages in the order written, pictures before and after, a manifest and a report."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from pivotune import __version__

from ...converters.embedding import Contents
from ...converters.errors import ConvertError
from ..errors import StageError
from ..export.last_good import keep_last_good
from ..models.device import make_deterministic, pick_device
from ..models.load import Model, load_model
from ..recipe.load import recipe_as_json
from ..recipe.model import Recipe
from ..report.page import write_report
from ..report.table import word_table
from ..stages import STAGES
from ..words.norms import norm_statistics
from .folder import open_folder, refuse_taken, write_json
from .hashes import model_hashes
from .manifest import data_facts, environment, model_facts, word_facts
from .metrics import Metrics, finite
from .proofs import hold, look_before, model_proofs
from .samples import draw_after, draw_before
from .state import Run

FULL = "the device's memory is full; try model.dtype = 'bfloat16', or device = 'cpu'"


@dataclass(frozen=True)
class RunResult:
    """Where a finished run lies, its report, and the table of words for the command line."""

    folder: Path
    report: Path
    summary: str


def run_recipe(recipe: Recipe, *, out: Path | None, progress: Callable[[str], None], bar: bool) -> RunResult:
    """Run every stage of a checked recipe into a new folder.

    Raises StageError or ConvertError when a stage fails; manifest and report then say why.
    """
    begin = time.monotonic()
    device = pick_device(recipe.device)
    make_deterministic(recipe.seed, recipe.threads)
    refuse_taken(out)
    progress(f"loading {recipe.model.base} on {device}")
    model = _loaded(recipe, device)
    folder = open_folder(recipe.name, out)
    metrics = Metrics(folder)
    text = recipe.path.read_bytes()
    (folder / "recipe.toml").write_bytes(text)
    manifest: dict[str, Any] = {
        "pivotune": __version__, "name": recipe.name, "recipe": recipe_as_json(recipe),
        "recipe_sha256": hashlib.sha256(text).hexdigest(), "status": "running", "error": None,
        "started": datetime.now(UTC).astimezone().isoformat(timespec="seconds"), "seconds": 0.0,
        "environment": environment(device), "words": [], "stages": [], "proofs": {}, "artefacts": [], "pictures": [],
        "warnings": [],
    }  # fmt: skip
    try:
        write_json(folder / "manifest.json", manifest)
        run = Run(recipe, folder, model, _statistics(model), metrics, progress, bar)
        _run_stages(run, manifest)
        manifest["status"] = "finished"
    except (StageError, ConvertError) as error:
        manifest |= {"status": "failed", "error": str(error)}
        raise
    except torch.OutOfMemoryError as error:  # while it draws; stages know a better way out
        manifest |= {"status": "failed", "error": FULL}
        raise StageError(FULL) from error
    except KeyboardInterrupt:
        manifest |= {"status": "stopped", "error": "stopped by Ctrl-C"}
        raise
    except BaseException as error:
        manifest |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        raise
    finally:
        manifest["seconds"] = round(time.monotonic() - begin, 3)
        write_json(folder / "manifest.json", finite(manifest))
        metrics.close()  # now, for until then the run counts as being at work
        report = write_report(folder)
    return RunResult(folder, report, f"{word_table(manifest)}\n{_ending(manifest)}")


def _loaded(recipe: Recipe, device: torch.device) -> Model:
    """The recipe's model; a run has no folder yet, so a model that cannot be had leaves nothing behind."""
    try:
        return load_model(recipe.model, device)
    except torch.OutOfMemoryError as error:
        raise StageError(FULL) from error


def _ending(manifest: dict[str, Any]) -> str:
    """The lines under the table of words: what was proved, and the files by program."""
    proofs = manifest["proofs"]
    lines = ["", "Proved: the vocabulary is bit for bit what it was; a gradient reached every vector that was trained;"]
    if "exports_verified" in proofs:
        lines += [f"{proofs['exports_verified']} of {proofs['exports_declared']} exports read back as they went in."]
    files: dict[str, list[str]] = {}
    for row in manifest["artefacts"]:
        if row["kind"] != "text":
            files.setdefault(row["program"] or "LoRA", []).append(row["path"])
    return "\n".join([*lines, *(f"  {program}: {', '.join(paths)}" for program, paths in files.items())])


def _statistics(model: Model) -> dict[str, Any]:
    return {encoder.key: norm_statistics(encoder.table) for encoder in model.encoders}


def _run_stages(run: Run, manifest: dict[str, Any]) -> None:
    """Everything between the loaded model and the finished manifest."""
    recipe, model = run.recipe, run.model
    before = look_before(model)
    manifest["model"] = model_facts(run, model_hashes(model.path) if model.path else {})
    manifest["data"], shown = data_facts(recipe)
    run.progress("drawing pictures before")
    manifest["pictures"] = draw_before(model, recipe, run.folder / "pictures")
    contents = Contents()
    try:
        for number in range(len(recipe.stages)):
            write_json(run.folder / "manifest.json", finite(manifest))  # for those who follow the run
            contents = _run_stage(run, number, contents, manifest)
    except BaseException:  # whatever it was: a full disk, Ctrl-C, a stage that found its match
        if run.kept is not None:
            keep_last_good(run, run.kept)
        raise
    finally:
        run.eject()
        manifest |= {"warnings": run.warnings, "artefacts": run.artefacts}
    if contents.embeddings:
        manifest["words"] = [word_facts(run, word, contents, shown[word.placeholder]) for word in recipe.words]
    trained = [word.placeholder for word in recipe.words if word.train]
    manifest["proofs"] = {
        **model_proofs(model, before),
        "gradient_reached": {word: word in run.reached for word in trained},
        **{name: run.data[name] for name in ("exports_verified", "exports_declared") if name in run.data},
    }
    hold(manifest["proofs"])
    if run.data.get("standalone"):
        run.progress("drawing pictures after, from the exported files")
        manifest["pictures"] += draw_after(
            model, recipe, run.data["standalone"], run.data.get("lora"), run.folder / "pictures"
        )


def _run_stage(run: Run, number: int, contents: Contents, manifest: dict[str, Any]) -> Contents:
    """Run one stage and note it in the manifest. A failure says which stage it was."""
    stage = run.recipe.stages[number]
    run.stage, run.notes = number, []
    begin = time.monotonic()
    run.progress(f"stage {number + 1} of {len(run.recipe.stages)}: {stage.kind}")
    row = {"kind": stage.kind, "seconds": 0.0, "takes": _held(contents), "gives": [], "notes": run.notes}
    manifest["stages"].append(row)
    try:
        after = STAGES[stage.kind](run, contents, **stage.options)
        run.kept = after if run.kept is not None else None
        row["gives"] = _held(after)
        return after
    except (StageError, ConvertError) as error:
        raise StageError(f"stage {number + 1} ({stage.kind}): {error}") from error
    except torch.OutOfMemoryError as error:
        way_out = "a smaller batch_size with gradient_accumulation, gradient_checkpointing = true, a smaller resolution"
        raise StageError(f"stage {number + 1} ({stage.kind}): the device's memory is full; try {way_out}") from error
    finally:
        row["seconds"] = round(time.monotonic() - begin, 3)


def _held(contents: Contents) -> list[str]:
    words = [f"{word.name} ({', '.join(f'{key} {raw.shape[0]}x{raw.shape[1]}' for key, raw in word.vectors.items())})"
             for word in contents.embeddings]  # fmt: skip
    return words + ([f"LoRA of {len(contents.rest)} tensors"] if contents.rest else [])
