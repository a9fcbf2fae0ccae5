"""Extended textual inversion (XTI, P+) of kohya: one vector for each of 16 layers of the U-Net."""

from __future__ import annotations

from typing import NoReturn

from ..errors import ConvertError
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
    """Always raises ConvertError: no other program has a place for such vectors."""
    raise ConvertError(
        f"{file.path}: this is an extended textual inversion (XTI): one vector for each of 16 layers of the U-Net, "
        "which only kohya's gen_img_diffusers.py --XTI_embeddings can use; no ordinary embedding can be made of it"
    )
