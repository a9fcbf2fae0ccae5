"""Extended textual inversion (XTI, P+) of kohya: one vector for each of 16 layers of the U-Net."""

from __future__ import annotations

from typing import NoReturn

from ..errors import ConvertError
from ..programs import NAMES, programs
from ..programs.verdict import Verdict
from ..stored import Stored
from . import cloneofsimo

LAYERS = frozenset(
    f"{part}{number}"
    for part, numbers in (
        ("IN", ("01", "02", "04", "05", "07", "08")),
        ("MID", ("",)),
        ("OUT", ("03", "04", "05", "06", "07", "08", "09", "10", "11")),
    )
    for number in numbers
)


def detect(file: Stored) -> bool:
    """The names of the 16 layers."""
    return file.tensors.keys() == LAYERS and not cloneofsimo.detect(file)


def read(file: Stored) -> NoReturn:
    """Always raises ConvertError: such vectors cannot be converted to an ordinary embedding."""
    raise ConvertError(
        f"{file.path}: this is an extended textual inversion (XTI): one vector for each of 16 layers of the U-Net, "
        "which only kohya's gen_img_diffusers.py --XTI_embeddings can use; it cannot be converted"
    )


def verdicts(file: Stored) -> dict[str, Verdict]:
    """kohya's generator uses all vectors, ComfyUI and SwarmUI the first tensor for all layers, others none."""
    no = Verdict("no", "", ("it has no embeddings with a vector for each layer of the U-Net",))
    found = dict.fromkeys(NAMES, no)
    found["kohya"] = Verdict("yes", file.stem, ("gen_img_diffusers.py --XTI_embeddings reads it",))
    note = f"it uses {next(iter(file.tensors))} of the 16 tensors for all layers"
    for name in ("comfyui", "swarmui"):
        program = programs()[name]
        found[name] = Verdict("partly", program.prompted(file.stem, file.stem), (note,), program.after_prompt)
    return found
