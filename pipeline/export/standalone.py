"""One word as one standalone file, in the dialect that most programs read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ...converters.embedding import Embedding
from ...converters.errors import ConvertError
from ...converters.families import Family
from ...converters.programs import programs
from ...converters.tensor import RawTensor
from ...converters.write import Written, layout_for, write_word
from ..run.state import Run

# Programs whose file stands for the word: the first that holds all of it. A1111's dialect is read by all others but
# OneTrainer (sd1, sd2) and diffusers; ComfyUI's takes T5 too, and words that have vectors for some encoders only.
STANDALONE = ("a1111", "comfyui")


def write_standalone(run: Run, word: Embedding, folder: Path) -> Written:
    """Write the word and read it back. Raises ConvertError when no file would give the same vectors."""
    folder.mkdir(parents=True, exist_ok=True)
    why: ConvertError | None = None
    for program in STANDALONE:
        try:
            _, layout = layout_for(program, run.model.family)
            if len(layout.files) == 1 and word.vectors.keys() <= layout.files[0].keys():
                [written] = write_word(word, program, run.model.family, folder, widths=widths(run))
                return written
        except ConvertError as error:
            why = why or error
    raise why or ConvertError(f"{word.name}: no program known here holds {', '.join(word.vectors)} in one file")


def standalone_vectors(tensors: Mapping[str, RawTensor], family: Family) -> dict[str, RawTensor]:
    """Encoder key to vectors of a file that `write_standalone` wrote."""
    found: dict[str, RawTensor] = {}
    for layout in (programs()[name].layouts.get(family.name) for name in STANDALONE):
        keys = layout.files[0] if layout is not None else {}
        found |= {key: tensors[name] for key, name in keys.items() if name in tensors}
    return found


def widths(run: Run) -> dict[str, int]:
    """Encoder key to width, as the loaded model has them (a small model has the shape of a family, not its sizes)."""
    return {encoder.key: encoder.width for encoder in run.model.encoders}
