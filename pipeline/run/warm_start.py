"""`--from-checkpoint`: a new run starts from the checkpoint of an earlier one, exactly or as far as it fits."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..embeddings.injection import EmbeddingRows
from ..errors import StageError
from ..files import write_atomically
from ..recipe.options import TrainOptions
from ..records import METRICS, manifest_or_none, parse_row, require_logged_lines, unreadable_reason
from ..run_folder import file_inside
from ..text import count_of
from ..train.embeddings import EmbeddingTrainer
from ..train.setup import Training
from ..train.snapshot import Shadow, stored_averages, stored_rows, stored_weights
from .checkpoints import FOLDER, Checkpoint, Source, newest_checkpoint, read_checkpoint
from .context import RunContext, RunState, warn
from .diff import ROUNDING, Difference, difference_lines, input_differences
from .resume import LOADED

LISTED = 20  # differences in a message
# Differences that change no finished step: texts, sample images, how often checkpoints are written.
_FREE = ("recipe.name", "recipe.samples", "recipe.checkpoint", ROUNDING)


def open_source(path: Path, inputs: Mapping[str, Any], progress: Callable[[str], None]) -> Source:
    """The newest checkpoint of a run folder, or the one in that file. Raises StageError when there is none.

    It fits exactly when nothing differs but texts and a larger number of steps of its own stage.
    """
    run = path if path.is_dir() else path.absolute().parent.parent
    point = newest_checkpoint(path, progress) if path.is_dir() else read_checkpoint(path)
    if point is None:
        raise StageError(f"{path}: contains no readable checkpoint (a run folder has them in {FOLDER}/)")
    left = manifest_or_none(run)
    if left is None:
        reason = unreadable_reason(run) or " (no manifest.json)"
        raise StageError(f"{run}: has no readable manifest, so the inputs of the checkpoint are unknown{reason}")
    differences = [one for one in input_differences(left, inputs) if not one.within(*_FREE)]
    unfit = [one for one in differences if not (_more_steps(one, point) or _of_a_guard(one))]
    if not unfit:
        progress(f"continuing from {run}, after step {point.step} of stage {point.stage + 1}")
    else:
        listed = "\n  ".join(difference_lines(unfit, LISTED))
        progress(f"loading what fits from {run}; starting at step 1; differences:\n  {listed}")
    return Source(run, run / FOLDER / point.name if path.is_dir() else path, point, not unfit)


def reopen_source(
    manifest: Mapping[str, Any],
    point: Checkpoint | None,
    inputs: Mapping[str, Any],
    progress: Callable[[str], None],
) -> Source | None:
    """The checkpoint that an unfinished run started from, where it is still needed: the run has no checkpoint (`point`)
    of its own, or later stages load from it. Raises StageError when the file is missing or has changed."""
    source = manifest.get("source")
    if source is None or (point is not None and (source["continues"] or not _trains_after(manifest, point.stage))):
        return None
    try:
        found = open_source(Path(source["path"]), inputs, progress)
    except StageError as error:
        advice = "give its new path with --from-checkpoint"
        raise StageError(f"the checkpoint that the run started from is still needed ({advice}): {error}") from error
    if found.point.sha256 != source["sha256"]:
        raise StageError(f"{source['path']}: not the checkpoint that the run started from; choose another --out")
    return found


def _trains_after(manifest: Mapping[str, Any], stage: int) -> bool:
    return any(one.get("kind") == "train" for one in manifest["recipe"].get("stage", [])[stage + 1 :])


def _more_steps(one: Difference, point: Checkpoint) -> bool:
    steps = f"recipe.stage.{point.stage + 1}.steps"
    return one.key == steps and None not in (one.old, one.new) and one.new > one.old


def _of_a_guard(one: Difference) -> bool:
    """Whether only guards differ, which change no training."""
    return re.match(r"recipe\.stage\.\d+\.guard\.", one.key) is not None


def copy_from_source(source: Source, folder: Path) -> None:
    """Copy the earlier run's metrics up to the checkpoint, and the images drawn until then, into the folder of the new
    run. StageError when they are missing."""
    if not source.continues:
        return
    try:
        lines = require_logged_lines(source.run / METRICS, source.point.facts["run"]["metrics"])
        images = [one["path"] for line in lines.splitlines() for one in parse_row(line).get("images", ())]
        files = {path: file_inside(source.run, path) for path in images if path.startswith("images/")}
        write_atomically(folder / METRICS, lines)
        for path, file in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).unlink(missing_ok=True)  # it may be a second name of a file elsewhere
            shutil.copyfile(file, folder / path)
    except (OSError, ValueError, StageError) as error:
        raise StageError(f"{source.run}: its metrics and images cannot be copied ({error})") from error


_EMBEDDINGS = "embeddings"
_NOUNS = {_EMBEDDINGS: "embedding", "lora": "LoRA weight", "finetune": "fine-tuned weight"}


def load_what_fits(context: RunContext, state: RunState, training: Training) -> None:
    """Load embeddings and weights of the stage from the source, each once, and sum up in one line how many fit.

    Vectors fit by the embedding's name and their number, weights by name and shape. Training starts from the trained
    values; EMA weights are loaded too where the stage keeps some. An embedding that no stage trains gets
    the EMA weights themselves, as its own run would have exported them.
    """
    source = context.source
    if source is None or source.continues:
        return
    fit, total = Counter[str](), Counter[str]()
    for kind, fits in [
        *_load_embeddings(context, state, training, source.point),
        *_load_weights(context, state, training, source.point),
    ]:
        fit[kind] += fits
        total[kind] += 1
    if total:
        counts = ", ".join(f"{fit[kind]} of {count_of(total[kind], _NOUNS[kind])}" for kind in total)
        line = f"{LOADED}{counts}; new optimizer state"
        state.notes.append(line)
        if any(fit.values()):
            context.progress(line)
        else:
            warn(context, state, f"{line}: nothing fits; an embedding needs the same name and number of tokens")


def _load_embeddings(
    context: RunContext, state: RunState, training: Training, point: Checkpoint
) -> list[tuple[str, bool]]:
    """For each embedding whether it was loaded: its vectors for every text encoder."""
    if _EMBEDDINGS in state.loaded:
        return []
    state.loaded.add(_EMBEDDINGS)
    spans: Mapping[str, Mapping[str, list[int]]] = point.facts["spans"]
    stored, averages = stored_rows(point.tensors), stored_averages(point.tensors, EmbeddingTrainer.name)
    trained = context.recipe.trained if _trains_embeddings(context, state) else {}
    loaded: dict[str, bool] = {}
    for key, rows in training.injection.rows.items():
        there, values = spans.get(key, {}), stored.get(key)
        for embedding, span in rows.spans.items():
            first, last = there.get(embedding, (0, 0))
            loaded.setdefault(embedding, True)
            replaces = embedding in point.facts.get("outputs", {}).get(key, [])
            if values is None or last - first != len(span) or replaces != (embedding in rows.outputs):
                loaded[embedding] = False
            else:
                average = {name: one[first:last] for name, one in averages.get(key, {}).items()}
                _load_embedding(training, key, rows, span, values[first:last], average, trained=embedding in trained)
    return [(_EMBEDDINGS, fits) for fits in loaded.values()]


def _trains_embeddings(context: RunContext, state: RunState) -> bool:
    """Whether this stage or a later one trains embeddings."""
    return any(options.embeddings for _, options in context.recipe.stages_with(TrainOptions, state.stage))


def _load_embedding(
    training: Training, key: str, rows: EmbeddingRows, span: range, values: Tensor, average: Shadow, *, trained: bool
) -> None:
    """Put an embedding's vectors and its EMA weights into the table of one text encoder."""
    index = torch.tensor(span, dtype=torch.long, device=rows.values.device)
    rows.values[index] = (average["shadow"] if average and not trained else values).to(rows.values)
    if training.embeddings is not None:
        training.embeddings.states.load_ema(key, index, average if trained else {})


def _load_weights(
    context: RunContext, state: RunState, training: Training, point: Checkpoint
) -> list[tuple[str, bool]]:
    """For each weight of the stage's LoRAs and fine-tunes whether it was loaded."""
    loaded: list[tuple[str, bool]] = []
    for trainable in training.trainables.weights:
        if trainable.name in state.loaded:
            continue
        state.loaded.add(trainable.name)
        here, averages = trainable.parameters, stored_averages(point.tensors, trainable.name)
        stored = stored_weights(point.tensors, trainable.name)
        same = {key: one for key, one in stored.items() if key in here and here[key].shape == one.shape}
        trainable.load_weights(same, {key: averages[key] for key in same if key in averages})
        loaded += [(trainable.kind, key in same) for key in here]
    return loaded
