"""Reading as AUTOMATIC1111 1.8 to 1.10: `create_embedding_from_data`, then the width of all CLIP encoders together."""

from __future__ import annotations

from ..stored import Stored
from .reading import Reading, broken, clips, word
from .webui import parsed


def reads(file: Stored, widths: dict[str, int]) -> Reading:
    """One word called like the file. A T5 or other part is carried along unused (SD3)."""
    found = parsed(file)
    if isinstance(found, str):
        return broken(found)
    tensors, size = found
    encoders = clips(widths)
    if size != sum(encoders.values()):
        return broken(f"its vectors are {size} wide, the model wants {sum(encoders.values())}; the file is skipped")
    if "" in tensors:
        if len(encoders) != 1:
            return broken("one tensor as wide as both encoders together loads and then fails in a prompt")
        return word(file.stem, dict.fromkeys(encoders, tensors[""]), file.tensors, file.tensors)
    return word(file.stem, {key: tensors[key] for key in encoders}, file.tensors, encoders)
