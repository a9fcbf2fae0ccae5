"""Saves while a stage trains: what an export would write at this step, in a folder of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...converters import disk
from ...converters.embedding import Contents
from ..recipe.fill import defaults
from ..train.lora import lora_aside
from ..train.parts import part_modules
from ..train.training import Training
from .folder import write_json
from .state import Run
from .watch import as_used, undisturbed

Write = Callable[..., object]  # (run, contents, folder, the export stage's options)


class Saves:
    """Writes `saves/stage-3-step-000500/` and its like, as the recipe's export stage says, and keeps the last few."""

    def __init__(
        self, run: Run, training: Training, options: Mapping[str, Any], contents: Callable[[], Contents], write: Write
    ) -> None:
        """`contents` gives the words and the LoRA as they are now; `write` is what the export stage writes with."""
        self.run, self.training, self.options, self.contents, self.write = run, training, options, contents, write
        self.folder = run.folder / "saves"
        asked = [stage.options for stage in run.recipe.stages if stage.kind == "export"]
        self.export = asked[-1] if asked else {k: v for k, v in defaults("stages/export.json").items() if k != "kind"}

    def save(self, step: int) -> str:
        """Save after this step, counted from 1; returns the folder's path from the run's folder.

        The folder appears when all of it is written and verified; one that is there already is left as it is. The
        main process writes; all must ask for it.
        """
        final, processes = self.folder / f"stage-{self.run.stage + 1}-step-{step:06d}", self.run.processes
        if processes.from_main(lambda: not final.exists()):
            with as_used(self.training), processes.together():
                if processes.main:
                    self._save(final, step)
        return final.relative_to(self.run.folder).as_posix()

    def _save(self, final: Path, step: int) -> None:
        for litter in self.folder.glob(".stage-*"):  # of a process that was killed while it wrote or deleted
            shutil.rmtree(litter, ignore_errors=True)
        part = self.folder / f".{final.name}.part"
        part.mkdir(parents=True)
        try:
            self._written(part, step)
            disk.replace(part, final)
            disk.sync_folder(self.folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        self._forget()

    def _written(self, part: Path, step: int) -> None:
        with undisturbed(self.training.model.device):
            contents = self.contents()
            finetuned = set(self.run.finetuned) if self.options["model"] else set()
            there = replace(
                self.run, folder=part, artefacts=[], warnings=[], notes=[], data={}, finetuned=finetuned,
                progress=lambda text: None,
            )  # fmt: skip
            models = part_modules(self.training.model).values()
            with self.training.injection.suspended(), lora_aside(models):
                self.write(there, contents, part, **self.export)
        facts = {"step": step, "stage": self.run.stage + 1, "artefacts": there.artefacts, "warnings": there.warnings}
        write_json(part / "save.json", facts)

    def _forget(self) -> None:
        """Delete the saves of this stage before the last few; one is renamed first, so that none is half there."""
        if not self.options["keep"]:
            return
        steps = {path: path.name.rpartition("-")[2] for path in self.folder.glob(f"stage-{self.run.stage + 1}-step-*")}
        own = [path for path, step in steps.items() if step.isdecimal()]  # the others are copies of the user's own
        saves = sorted(own, key=lambda path: int(steps[path]))
        for old in saves[: -self.options["keep"]]:
            hidden = old.with_name(f".{old.name}.old")
            with suppress(PermissionError):  # Windows, while one of its files is open: more than `keep` stay
                disk.replace(old, hidden)
                shutil.rmtree(hidden)
