"""What a run that was stopped has learnt so far, as files: hours of training must not be lost with it."""

from __future__ import annotations

from ...converters.embedding import Contents
from ..run.state import Run
from .lora import write_plain
from .standalone import write_standalone


def keep_last_good(run: Run, contents: Contents) -> None:
    """Write words and LoRA, as the last good step left them, to `last-good/` of the run's folder."""
    folder = run.folder / "last-good"
    write_standalone(run, contents.embeddings, folder)
    if contents.rest:
        write_plain(run, contents.rest, folder / f"{run.recipe.name}.safetensors")
    what = "vectors and LoRA" if contents.rest else "vectors"
    run.progress(f"the last good {what} are in {folder}")
