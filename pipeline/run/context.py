"""What a stage knows of the run that it is part of, and the state that stages change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from ...converters.embedding import Contents
from ..distributed import SINGLE_PROCESS, Processes
from ..embeddings.initial import InitialTokens
from ..embeddings.injection import Injection
from ..embeddings.norms import NormStatistics
from ..errors import StageError
from ..export.context import ExportContext, Exports
from ..models.load import Model, part_modules
from ..recipe.model import Recipe
from ..records import Metrics
from ..train.lora import remove_lora
from .checkpoints import Checkpoint, Checkpointer, Source


@dataclass(frozen=True, eq=False)
class RunContext:
    """What stays the same from the first stage of a run to its last.

    `statistics` are the norms of each text encoder's vocabulary. With several `processes` only the main one writes into
    `folder`. `source` is the checkpoint of `--from-checkpoint`. `file_hashes` are those of images, masks and captions
    when the run started; a train stage compares them with the files that it reads.
    """

    recipe: Recipe
    folder: Path
    model: Model
    statistics: Mapping[str, NormStatistics]
    checkpointer: Checkpointer
    metrics: Metrics
    progress: Callable[[str], None]
    bar: bool = False
    processes: Processes = SINGLE_PROCESS
    source: Source | None = None
    file_hashes: Mapping[str, str] = field(default_factory=dict)


@dataclass(eq=False)
class TrainingResults:
    """What the train stages have trained so far.

    `stopped_at` is the step at which an embedding reached its `stop_after`; `reached` are the embeddings that a
    gradient reached. `finetuned` names the parts of the pipeline (`unet`, `text_encoder`, …) whose own weights were
    trained. `weights` has every trained weight, of LoRAs too, and `originals` copies of the model's own weights as they
    were loaded, where a stage compares with them.
    """

    stopped_at: dict[str, int] = field(default_factory=dict)
    reached: set[str] = field(default_factory=set)
    finetuned: set[str] = field(default_factory=set)
    weights: dict[str, Parameter] = field(default_factory=dict)
    originals: dict[Parameter, Tensor] = field(default_factory=dict)


@dataclass(eq=False)
class RunState:
    """What stages leave for later stages, for a checkpoint and for the manifest.

    `checkpoint` is the one to resume from, until its stage has restored it. `stage` is the index of the stage at work,
    `rows` are the manifest's entries of the stages so far, `notes` those of the stage at work. `initial` has the
    initial vectors and `initial_tokens` the tokens that they come from. `latest` is what training has reached, kept for
    a run that stops early. `loaded` names what was loaded from the source already.
    """

    checkpoint: Checkpoint | None = None
    stage: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    injection: Injection | None = None
    initial: Contents = field(default_factory=Contents)
    initial_tokens: dict[str, dict[str, InitialTokens]] = field(default_factory=dict)
    trained: TrainingResults = field(default_factory=TrainingResults)
    latest: Contents | None = None
    loaded: set[str] = field(default_factory=set)
    exports: Exports | None = None
    artefacts: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def stored_row(self, index: int) -> dict[str, Any]:
        """The manifest's entry of a stage as the checkpoint has it."""
        assert self.checkpoint is not None
        row: dict[str, Any] = self.checkpoint.facts["run"]["rows"][index]
        return row

    def require_injection(self) -> Injection:
        """The injected embeddings; StageError when no `inject` stage came before."""
        if self.injection is None:
            raise StageError("no embedding is injected; put an inject stage before this one")
        return self.injection

    def eject(self, model: Model) -> None:
        """Remove the embeddings and LoRAs from the model, if they are in it."""
        for module in part_modules(model).values():
            remove_lora(module)
        if self.injection is not None:
            self.injection.eject()
            self.injection = None


StageFunction = Callable[[RunContext, RunState, Contents, Any], Contents]  # the last are the stage's options


def warn(context: RunContext, state: RunState, text: str) -> None:
    """Add a warning to the manifest and the report, and print it."""
    state.warnings.append(text)
    context.progress(f"warning: {text}")


def export_context(context: RunContext, state: RunState) -> ExportContext:
    """What exporters need; their artefacts and warnings become those of the run."""
    return ExportContext(
        context.recipe, context.model, context.folder, state.initial, frozenset(state.trained.finetuned), state.stage,
        context.processes, context.progress, state.artefacts, state.warnings,
    )  # fmt: skip
