"""How AUTOMATIC1111's `create_embedding_from_data` tells files apart, which Forge shares."""

from __future__ import annotations

import re

from ..slots import as_rows
from ..stored import Stored
from ..tensor import RawTensor
from .reading import string_to_param, width

# Members that A1111's check (modules/safe.py) knows; current torch writes two more, and the file is refused.
_MEMBERS = r"[^/]+/(data/\d+|version|byteorder|\.data/serialization_id|data\.pkl)"


def parse_embedding(file: Stored) -> tuple[dict[str, RawTensor], int] | str:
    """The tensors by the name they have in the file, and the width that is compared with the model's.

    A lone tensor is filed under the name `""`: it stands for whichever encoder there is. A text says why the
    program raises. Order and conditions are those of modules/textual_inversion/textual_inversion.py, 1.8 to 1.10.
    """
    tensors = file.tensors
    entries = string_to_param(tensors)
    if entries:
        if len(entries) != 1:
            return f"it wants exactly one entry in string_to_param, here are {len(entries)}"
        lone = next(iter(entries.values()))
        return {"": lone}, width(lone)
    if file.root == "dict" and "clip_g" in tensors and "clip_l" in tensors:
        return dict(tensors), width(tensors["clip_g"]) + width(tensors["clip_l"])
    if file.root == "dict" and tensors and next(iter(tensors)) not in file.parameters:
        if len(tensors) != 1:
            return f"it takes one tensor, or clip_l and clip_g; here are {', '.join(list(tensors)[:4])}"
        lone = as_rows(next(iter(tensors.values())))
        return {"": lone}, width(lone)
    return "it cannot tell what the file is"


def embedding_name(file: Stored) -> str:
    """What it calls the embedding: an image says it itself, any other file is called like its embedding."""
    return file.metadata.get("name") or file.stem if file.container == "image" else file.stem


def unsafe(file: Stored) -> str:
    """Why A1111's check of pickles refuses the file; empty if it does not."""
    strange = [member for member in file.members if not re.fullmatch(_MEMBERS, member)]
    return (
        f"its check does not know {strange[0]!r} in a .pt of current torch, and refuses it as unsafe" if strange else ""
    )
