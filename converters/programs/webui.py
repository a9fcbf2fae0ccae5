"""How AUTOMATIC1111's `create_embedding_from_data` identifies files; Forge has the same code."""

from __future__ import annotations

import re

from ..slots import as_rows
from ..stored import Stored
from ..tensor import RawTensor
from .reading import string_to_param, width

PICKLES = (".bin", ".pt")
# Members that A1111's check (modules/safe.py) knows; current torch writes two more, and the file is refused.
_NAMES = (
    r"collections\.OrderedDict|torch\._utils\.(_rebuild_tensor_v2|_rebuild_parameter|_rebuild_device_tensor_from_numpy)"
    r"|torch\.(Float|Half|Int|Long|Double|Byte|BFloat16)Storage|torch\.float32|torch\.nn\.modules\.container\.ParameterDict"
    r"|numpy\.core\.multiarray\.(scalar|_reconstruct)|numpy\.(dtype|ndarray)|_codecs\.encode|__builtin__\.set"
    r"|pytorch_lightning\.callbacks(\.model_checkpoint\.ModelCheckpoint|\.model_checkpoint)"
)
_MEMBERS = r"[^/]+/(data/\d+|version|byteorder|\.data/serialization_id|data\.pkl)"


def parse_embedding(file: Stored) -> tuple[dict[str, RawTensor], int] | str:
    """The tensors by their names in the file, and the width that is compared with the model's.

    A single tensor has the name `""`, for whichever encoder the model has. A text says why the program raises. Order
    and conditions are those of modules/textual_inversion/textual_inversion.py, 1.8 to 1.10.
    """
    tensors = file.tensors
    entries = string_to_param(tensors)
    others = {key.partition(".")[0] for key in file.metadata} if file.container == "pickle" else set()
    if entries:
        if len(entries) != 1:
            return f"it needs exactly one entry in string_to_param; the file has {len(entries)}"
        lone = next(iter(entries.values()))
        return {"": lone}, width(lone)
    if file.root == "dict" and "clip_g" in tensors and "clip_l" in tensors:
        if others:
            return f"it takes tensors only beside clip_l and clip_g; the file has {sorted(others)[0][:60]!r}"
        return dict(tensors), width(tensors["clip_g"]) + width(tensors["clip_l"])
    if file.root == "dict" and tensors and next(iter(tensors)) not in file.parameters:
        if len(tensors) + len(others) != 1:
            more = ", ".join([*tensors, *sorted(others)][:4])
            return f"it takes one tensor, or clip_l and clip_g; the file has {more}"
        lone = as_rows(next(iter(tensors.values())))
        return {"": lone}, width(lone)
    return "it does not identify the file"


def embedding_name(file: Stored) -> str:
    """The embedding's name: from the image, or the name of any other file."""
    return file.metadata.get("name") or file.stem if file.container == "image" else file.stem


def unsafe(file: Stored) -> str:
    """Why A1111's check of pickles refuses the file; empty if it does not."""
    strange = [member for member in file.members if not re.fullmatch(_MEMBERS, member)]
    if strange:
        return f"it refuses {strange[0]!r} in a .pt of current torch as unsafe"
    names = [name for name in sorted(file.names) if not re.fullmatch(_NAMES, name)]
    if (
        file.container == "pickle"
        and not file.members
        and any(name.startswith("torch.nn.modules") for name in file.names)
    ):
        names = ["torch.nn.modules"]  # the old format stores a module's source with it
    return f"it refuses {names[0][:60]!r} in a pickle as unsafe" if names else ""
