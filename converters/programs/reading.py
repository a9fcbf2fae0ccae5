"""What a program makes of a file: the vectors of each embedding, what it leaves out, and what goes wrong."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from ..stored import Stored
from ..tensor import RawTensor

# What torch.load(weights_only=True) allows; an nn.ParameterDict (original textual inversion) is not among it.
_PLAIN = (
    r"torch\._utils\._rebuild_\w+|torch\._tensor\._rebuild_\w+|torch(\.storage)?\.\w+Storage|torch\.(b?float|u?int|bool)\w*"
    r"|collections\.OrderedDict|torch\.(Size|device|Tensor)|torch\.nn\.parameter\.Parameter|(__builtin__|builtins)\.set"
    r"|_codecs\.encode"
)

Vectors = dict[str, RawTensor]


@dataclass(frozen=True, eq=False, repr=False)
class Reading:
    """`embeddings` maps what the program calls an embedding to its vectors by encoder key of the loaded model.

    `dropped` names unused tensors, `refusal` says why nothing loads (then `embeddings` is empty),
    `notes` what else goes wrong in use.
    """

    embeddings: dict[str, Vectors] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    refusal: str = ""
    notes: tuple[str, ...] = ()


def embedding(name: str, vectors: Vectors, tensors: Iterable[str], used: Iterable[str]) -> Reading:
    """A Reading of one embedding; every tensor that is not `used` is dropped."""
    used = set(used)
    return Reading({name: vectors}, tuple(key for key in tensors if key not in used))


def refused(why: str) -> Reading:
    """A Reading of nothing."""
    return Reading(refusal=why)


def width(tensor: RawTensor) -> int:
    """Length of the last dimension, 0 for a scalar."""
    return tensor.shape[-1] if tensor.shape else 0


def only_weights(file: Stored) -> bool:
    """Whether `torch.load(weights_only=True)` opens the file (always, if it is no pickle)."""
    return all(re.fullmatch(_PLAIN, name) for name in file.names)


def misnamed(file: Stored, pickles: tuple[str, ...] = ()) -> str:
    """Why a program that goes by the extension does not open the file as what it is; empty if it does.

    `pickles` are the extensions that it opens as pickles (none: all but .safetensors).
    """
    suffix = file.path.suffix.lower()
    if file.container == "image":
        return "" if suffix in IMAGES else f"it looks for no embedding in a {suffix or 'nameless'} file"
    if (file.container == "safetensors") != (suffix == ".safetensors"):
        return f"it goes by the extension {suffix or '(none)'}, which this file is not"
    if file.container == "pickle" and pickles and suffix not in pickles:
        return f"it opens {', '.join(pickles)} and .safetensors, not {suffix or 'files without an extension'}"
    return ""


IMAGES = (".png", ".webp", ".jxl", ".avif")
REFUSED = "torch.load(weights_only=True) refuses the classes in this pickle"
BUNDLED = "bundle_emb."


def bundle_tensors(tensors: dict[str, RawTensor]) -> tuple[str, ...]:
    """Names of the tensors that belong to embeddings in a LoRA, or seem to."""
    return tuple([name for name in tensors if name.startswith(BUNDLED)])


def cut_at_first_dots(tensors: dict[str, RawTensor]) -> dict[str, dict[str, RawTensor]]:
    """Embeddings as A1111 and SD.Next part them: the name ends at the first dot, and may be all there is."""
    embeddings: dict[str, dict[str, RawTensor]] = {}
    for full in bundle_tensors(tensors):
        name, _, key = full[len(BUNDLED) :].partition(".")
        embeddings.setdefault(name, {})[key] = tensors[full]
    return embeddings


def clips(widths: dict[str, int]) -> dict[str, int]:
    """The CLIP encoders of a model: the only ones that A1111 and its kin give embeddings to."""
    return {key: size for key, size in widths.items() if key.startswith("clip")}


def string_to_param(tensors: dict[str, RawTensor]) -> dict[str, RawTensor]:
    """The entries of a file that calls its vectors `string_to_param`, by placeholder."""
    prefix = "string_to_param."
    return {key[len(prefix) :]: tensor for key, tensor in tensors.items() if key.startswith(prefix)}
