"""Checkpoints: the whole state of a training at one step, in one file that is complete or does not exist."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ...converters.disk import replace, sync_folder
from ..distributed import SINGLE_PROCESS, Processes
from ..errors import StageError
from ..recipe.intervals import Clock
from ..recipe.model import CheckpointRule
from ..run_folder import NUMBER, bounded_json, shape_error
from .signals import Stopped, StopRequest

FOLDER, KEPT = "checkpoints", 2
_FORMAT = "5"  # of its contents and their names
# The JSON of a checkpoint. The trees of `trainables` and `guard` are checked by the code that restores them.
_STAGE = {"kind": str, "seconds": NUMBER, "inputs": [str], "outputs": [str], "notes": [str]}
_RUN = {
    "metrics": {"bytes": int, "sha256": str}, "stopped_at": {"*": int}, "reached": [str], "warnings": [str],
    "rows": [_STAGE], "loaded": [str],
}  # fmt: skip
_SCALE = {"value": NUMBER, "dynamic": bool, "good": int, "overflows": int}
_FACTS = {
    "run": _RUN,
    "trainables": {"*": {}},
    "spans": {"*": {"*": [int]}},
    "outputs?": {"*": [str]},
    "scale": _SCALE,
    "guard?": {},
    "validation?": {"best": (*NUMBER, None), "best_step": int, "last_step": int, "since": int},
}
_NAME = re.compile(r"stage-\d+-step-\d+\.safetensors")
HEAD = {"stage": int, "step": int, "seconds": NUMBER, "facts": _FACTS}


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state after `step` steps of stage `stage` (from 0), `seconds` of training into it.

    `tensors` are on the CPU; `facts` is everything else as JSON (see `pipeline/train/snapshot.py`). `sha256` is set
    for one that was read.
    """

    stage: int
    step: int
    seconds: float
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]
    sha256: str = ""

    @property
    def name(self) -> str:
        return f"stage-{self.stage + 1:03d}-step-{self.step:09d}.safetensors"


@dataclass(frozen=True)
class Source:
    """A checkpoint to start from, and its file. `continues`: it fits exactly, and the new run continues at its step."""

    run: Path
    path: Path
    point: Checkpoint
    continues: bool

    @property
    def as_json(self) -> dict[str, Any]:
        """Its entry in the manifest, from which a run that was killed early finds it again."""
        return {"path": str(self.path.absolute()), "sha256": self.point.sha256, "continues": self.continues}


def write_checkpoint(run: Path, checkpoint: Checkpoint, keep: int = KEPT) -> Path:
    """Write a checkpoint, then delete all but the newest `keep`, and those of later steps.

    A resumed run may be at an earlier step than those. The file gets its name when its bytes are on the disk: a kill or
    a full disk leaves the older ones unchanged. Raises StageError when it cannot be written.
    """
    from safetensors.torch import save_file

    folder = run / FOLDER
    path = folder / checkpoint.name
    temporary = folder / f".{checkpoint.name}.part"
    head = {"stage": checkpoint.stage, "step": checkpoint.step, "seconds": checkpoint.seconds}
    facts = json.dumps({**head, "facts": checkpoint.facts}, sort_keys=True)
    tensors = {name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}
    try:
        folder.mkdir(exist_ok=True)
        for litter in folder.glob(".*.part"):  # of a process that was killed while it wrote
            litter.unlink()
        save_file(tensors, temporary, {"format": _FORMAT, "checkpoint": facts, "sha256": _digest(facts, tensors)})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        replace(temporary, path)
        sync_folder(folder)
        there = _by_age(folder)
        position = there.index(path)
        for later in there[:position]:
            later.unlink()
        for older in there[position + keep :]:
            with suppress(PermissionError):  # Windows, while another program has it open: it is kept
                older.unlink()
    except Exception as error:  # safetensors has its own exception for a full disk
        temporary.unlink(missing_ok=True)
        raise StageError(f"{path}: the checkpoint cannot be written ({error})") from error
    return path


def newest_checkpoint(run: Path, progress: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that can be read, None where there is none; damaged ones are named and skipped."""
    for path in _by_age(run / FOLDER):
        try:
            return read_checkpoint(path)
        except StageError as error:
            progress(f"{error}; skipped")
    return None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read one file. Raises StageError when it is damaged or not a checkpoint."""
    from safetensors import SafetensorError, safe_open

    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise StageError(f"{path}: not a plain file")
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        if "checkpoint" not in metadata:
            raise StageError(f"{path}: not a checkpoint")
        if metadata["format"] != _FORMAT:
            raise StageError(
                f"{path}: the checkpoint is of another version of Pivotune (layout {metadata['format']}, not {_FORMAT})"
            )
        if metadata.get("sha256") != _digest(metadata["checkpoint"], tensors):
            raise StageError(f"{path}: the checkpoint is damaged: its hash differs from the recorded one")
        head = bounded_json(metadata["checkpoint"], infinite=True)  # optimizers may store infinity
        wrong = shape_error(head, HEAD)
        if wrong or min(head["stage"], head["step"]) < 0 or not math.isfinite(head["seconds"]):
            raise StageError(f"{path}: not a checkpoint of this version of Pivotune ({wrong or 'a negative step'})")
        return Checkpoint(head["stage"], head["step"], head["seconds"], tensors, head["facts"], metadata["sha256"])
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise StageError(f"{path}: the checkpoint cannot be read ({error})") from error


def _by_age(folder: Path) -> list[Path]:
    """The checkpoints, newest first: their names sort by stage and step. Files with other names are the user's own."""
    found = (path for path in folder.glob("stage-*-step-*.safetensors") if _NAME.fullmatch(path.name))
    return sorted(found, reverse=True)


def _digest(facts: str, tensors: Mapping[str, Tensor]) -> str:
    from ..files import tensor_hash

    digest = hashlib.sha256(facts.encode())
    for name in sorted(tensors):
        digest.update(
            f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)} {tensor_hash(tensors[name])}".encode()
        )
    return digest.hexdigest()


Snapshot = Callable[[], tuple[Mapping[str, Tensor], Mapping[str, Any]]]

RESUME_HINT = "the same command resumes it"


class Checkpointer:
    """Writes a run's checkpoints: at intervals, at the end of each train stage, and when a signal stops the run."""

    def __init__(
        self, folder: Path, rule: CheckpointRule, request: StopRequest, processes: Processes = SINGLE_PROCESS,
        resume_hint: str = RESUME_HINT,
    ) -> None:  # fmt: skip
        """`resume_hint` is printed when a signal stops the run: how it is resumed."""
        self.folder, self.rule, self.request, self.processes = folder, rule, request, processes
        self.resume_hint = resume_hint

    def after_step(self, stage: int, clock: Clock, before: float, state: Snapshot, *, now: bool = False) -> None:
        """Write a checkpoint where one is due; called after each step. Raises Stopped when a signal has come.

        The step before ended `before` seconds after the stage began. With `every = "never"` a checkpoint is written
        only when a signal has come, or `now`. A signal to one process stops all of them.
        """
        last = clock.step == clock.steps and self.rule.every.unit != "never"
        due = now or last or self.rule.every.due(clock, before)  # the same in every process
        stopping = self.processes.any(self.request.number is not None)
        if stopping or due:
            tensors, facts = state()  # in all processes: some of it may be sharded
            with self.processes.together():
                if self.processes.main:
                    point = Checkpoint(stage, clock.step, clock.seconds, tensors, facts)
                    write_checkpoint(self.folder, point, self.rule.keep)
        if stopping:
            where = f"step {clock.step} of {clock.steps} (stage {stage + 1})"
            by = self.request.name or "a signal to another process"
            raise Stopped(f"Stopped by {by} after {where}; {self.resume_hint}", self.request.number)
