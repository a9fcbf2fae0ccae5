"""What an export needs to know of the run that it belongs to, and what it leaves for the manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...converters.embedding import Contents
from ..distributed import SINGLE_PROCESS, Processes
from ..models.load import Model
from ..recipe.model import Recipe


@dataclass(frozen=True, eq=False)
class ExportContext:
    """What is exported, and into which folder.

    `folder` is the one that the paths of `artefacts` are relative to: the run's, or that of a save. `initial` holds the
    initial vectors, from which distances are measured. `finetuned` names the parts of the pipeline (`unet`,
    `text_encoder`, …) whose own weights were trained. `stage` is the index of the recipe's stage that exports.
    Exporters append to `artefacts` (rows of the manifest) and `warnings`.
    """

    recipe: Recipe
    model: Model
    folder: Path
    initial: Contents
    finetuned: frozenset[str] = frozenset()
    stage: int = 0
    processes: Processes = SINGLE_PROCESS
    progress: Callable[[str], None] = lambda text: None
    artefacts: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Exports:
    """What an export stage wrote.

    `standalone` maps each placeholder to the file (or pack) with its vectors, `lora` is the plain LoRA. `declared` and
    `verified` count files. `embeddings` counts embeddings: declared, exported, verified. `finished` is the manifest's
    entry about `finished/`, None where that folder has none.
    """

    standalone: Mapping[str, Path]
    lora: Path | None
    declared: int
    verified: int
    embeddings: Mapping[str, int] = field(default_factory=dict)
    finished: Mapping[str, Any] | None = None
