"""What a stage may know of the run it is part of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from ...converters.embedding import Contents
from ..distributed import ALONE, Processes
from ..embeddings.initial import InitialTokens
from ..embeddings.injection import Injection
from ..embeddings.norms import NormStatistics
from ..errors import StageError
from ..models.load import Model, part_modules
from ..recipe.model import Recipe
from ..records import Metrics
from ..train.lora import remove_lora
from .checkpoints import Checkpoint, Checkpointer, Source


@dataclass(eq=False)
class Run:
    """One execution of a recipe: the model, the folder, and what stages leave for the manifest.

    `start` is what `tokenize` made, so that every later vector can be held against its beginning. `kept` is what
    training has reached, for the day on which the run is stopped. `data` is what a stage tells the manifest; nothing
    else reads it. `rows` are the manifest's lines of the stages so far. With `resume` the run goes on from a
    checkpoint: `done_rows` are the lines of the stages before it, `restored` what the run had noted by then.
    `finetuned` names the models of the pipeline (`unet`, `text_encoder`, …) whose own weights a stage has trained:
    `export` writes the whole model then. `moved` has every weight, of LoRAs too, that a stage of the run trains.
    With several `processes` only the main one writes into the folder; its data are the run's.
    `files` has the hashes of images and captions as the run began, where somebody is to look after them.
    `originals` has those of the model itself as they were loaded, where a stage must hold the model to them.
    """

    recipe: Recipe
    folder: Path
    model: Model
    statistics: dict[str, NormStatistics]
    checkpointer: Checkpointer
    progress: Callable[[str], None]
    bar: bool
    metrics: Metrics = field(init=False)
    resume: Checkpoint | None = None
    source: Source | None = None
    taken: set[str] = field(default_factory=set)
    restored: Mapping[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    done_rows: list[dict[str, Any]] = field(default_factory=list)
    stage: int = 0
    injection: Injection | None = None
    initial: dict[str, dict[str, InitialTokens]] = field(default_factory=dict)
    start: Contents = field(default_factory=Contents)
    kept: Contents | None = None
    stopped_at: dict[str, int] = field(default_factory=dict)
    reached: set[str] = field(default_factory=set)
    finetuned: set[str] = field(default_factory=set)
    moved: dict[str, Parameter] = field(default_factory=dict)
    originals: dict[Parameter, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    artefacts: list[dict[str, Any]] = field(default_factory=list)
    processes: Processes = ALONE
    files: Mapping[str, str] = field(default_factory=dict)

    def need_injection(self) -> Injection:
        """The injected embeddings; StageError when no `inject` stage came before."""
        if self.injection is None:
            raise StageError("no embedding is in the model yet: put an inject stage before this one")
        return self.injection

    def warn(self, text: str) -> None:
        """Something goes astray: at once on the command line, and in manifest and report."""
        self.warnings.append(text)
        self.progress(f"warning: {text}")

    def eject(self) -> None:
        """Take the embeddings and the LoRA out of the model again, if they are in it."""
        for module in part_modules(self.model).values():
            remove_lora(module)
        if self.injection is not None:
            self.injection.eject()
            self.injection = None
