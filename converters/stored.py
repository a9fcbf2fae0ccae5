"""One opened file made flat: what every dialect and every program's reading starts from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from .tensor import RawTensor


@dataclass(frozen=True, eq=False)
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

    @property
    def stem(self) -> str:
        """The file's name without folder and extension: what most programs take for the word."""
        return self.path.stem
