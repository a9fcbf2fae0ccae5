"""One opened file made flat: what every dialect and every program's reading starts from."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from .lora_modules import LoraModule, modules_of
from .tensor import RawTensor

# kohya, OneTrainer and LyCORIS begin a name so, and what follows the first dot says what the tensor is; diffusers/peft,
# ComfyUI and XLabs end it so; `unet:0:up` is cloneofsimo's. An embedding may be called `my_lora` or `soft_light`.
_LORA = (
    r"^(?:lora|lycoris|oft|boft)_\w+\.[a-z]"
    r"|^(?!bundle_emb\.).*(?:\.lora_(?:up|down|mid|[AB])\b|lora(?:_linear_layer|\d)?\.(?:up|down)\b"
    r"|\.(?:lora_magnitude|lora_embedding|hada_w|lokr_w|oft_|boft_|dora_scale))"
    r"|^(?:unet|text_encoder):\d+:(?:up|down)$"
)
# One of these is in each name that the expression finds, and they are found sooner.
_HINTS = ("lora", "hada_w", "lokr_w", "oft_", "dora_scale", "lycoris_", ":up\n", ":down\n")


@dataclass(frozen=True, eq=False, repr=False)
class Stored:
    """Tensors by name and text by key, whatever the container was.

    A nested pickle is flat here: `string_to_param["*"]` is `string_to_param.*`, numbers and texts are in
    `metadata` under such dotted names. `root` is what the outermost value was: `dict`, `ordered` (another kind
    of dict), `list`, `tensor`. Of a pickle also: which tensors are nn.Parameter, which classes and functions it
    `names`, and the `members` of its zip file; some programs refuse a file for one of these.
    """

    path: Path
    tensors: dict[str, RawTensor]
    metadata: dict[str, str] = field(default_factory=dict)
    container: str = "safetensors"  # or "pickle", "image"
    root: str = "dict"
    parameters: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    members: tuple[str, ...] = ()

    @cached_property
    def is_lora(self) -> bool:
        """Whether a tensor is called as those of a LoRA, LoHa, LoKr, OFT or DoRA are, in any layout."""
        return any(map(self.text.__contains__, _HINTS)) and bool(re.search(_LORA, self.text, re.M))

    @cached_property
    def modules(self) -> list[LoraModule]:
        """The modules of a LoRA, without the tensors of embeddings in it."""
        return [module for module in modules_of(self.tensors) if not module.name.startswith("bundle_emb.")]

    @cached_property
    def text(self) -> str:
        """All tensors' names, a line each: one look at it is quicker than one at each name."""
        return "\n".join(("", *self.tensors, ""))

    @property
    def stem(self) -> str:
        """The file's name without folder and extension: what most programs take for the embedding."""
        return self.path.stem


def plain_text(value: object) -> str:
    """A value as text; halves of surrogate pairs, which UTF-8 does not have, become question marks."""
    return str(value).encode("utf-8", "replace").decode()
