"""One word as one standalone file, in the dialect that most programs read."""

from __future__ import annotations

from pathlib import Path

from ...converters.embedding import Embedding
from ...converters.write import Written, write_word
from ..run.state import Run

STANDALONE = "a1111"  # its dialect is the one that all programs but OneTrainer (sd1, sd2) and diffusers read


def write_standalone(run: Run, word: Embedding, folder: Path) -> Written:
    """Write the word and read it back. Raises ConvertError when the file would not give the same vectors."""
    folder.mkdir(parents=True, exist_ok=True)
    [written] = write_word(word, STANDALONE, run.model.family, folder, widths=widths(run))
    return written


def widths(run: Run) -> dict[str, int]:
    """Encoder key to width, as the loaded model has them (a small model has the shape of a family, not its sizes)."""
    return {encoder.key: encoder.width for encoder in run.model.encoders}
