"""The text encoder a tensor belongs to, by its name and its width; if they disagree, the width decides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

from .tensor import DTYPE_BITS, RawTensor

# Other spellings of an encoder's key. A new spelling is a row here.
SPELLINGS = {
    "t5xxl": "t5",  # ComfyUI
    "gemma2_2b": "gemma",  # ComfyUI
    "text_encoders_0": "clip_l",  # diffusers' advanced script of 2023-11, cog-sdxl
    "text_encoders_1": "clip_g",
}
ENCODERS = (
    "clip_l", "clip_g", "clip_h", "t5", "gemma", "llama", "qwen",
    "qwen3_06b", "qwen3_4b", "qwen3_8b", "qwen3vl_4b", "qwen3vl_8b", "qwen25_7b", "mistral3_24b", "umt5xxl",
)  # fmt: skip
# Names that do not show the encoder: kohya, OneTrainer, A1111, LyCORIS' unpacker.
NAMELESS = ("emb_params", "emp_params", "string_to_param.*", "*")
# Widths that only one encoder has. 4096 is T5 or Llama: such a tensor stays UNNAMED until a family is known.
BY_WIDTH = {768: "clip_l", 1024: "clip_h", 1280: "clip_g", 2304: "gemma"}
UNNAMED = "unnamed"
_UNSETTLED = (UNNAMED, f"{UNNAMED}_out")
LONG = 1000  # characters of keys; longer ones are not cached
JOINED = (768, 2048)

# Every key a tensor may have in a file.
KEYS = frozenset(
    key + out for key in (*ENCODERS, *SPELLINGS, *NAMELESS) for out in ("", "_out") if "*" not in key or not out
)


def slots(tensors: Mapping[str, RawTensor]) -> dict[str, RawTensor]:
    """Tensors of one embedding by encoder key (`clip_l`, `clip_l_out`, ...), from whatever their names in a file were.

    CLIP-L called `clip_g` (OneTrainer's FLUX files of 2024) and SD 2's `clip_l` are corrected by their width. Two
    tensors never share a key: if their widths would make them, their names decide. A tensor without an encoder's name
    that is as wide as CLIP-L and CLIP-G together (HCP-Diffusion, A1111 on SDXL) is split.
    """
    if len(tensors) == 1 and (halves := _halves(*next(iter(tensors.items())))):
        return halves
    signs = tuple([(key, tensor.shape[-1] if tensor.shape else None) for key, tensor in tensors.items()])
    find = _slots if sum(map(len, tensors)) < LONG else _slots.__wrapped__  # keys from files may have any length
    return dict(zip(find(signs), tensors.values(), strict=True))


@lru_cache(maxsize=256)
def _slots(signs: tuple[tuple[str, int | None], ...]) -> tuple[str, ...]:
    """The slots of tensors with these names and widths (None: a number); many embeddings have the same."""
    named = [_named(key, width) for key, width in signs]
    sized = [_sized(slot, width) for slot, (_, width) in zip(named, signs, strict=True)]
    return tuple(sized if len(set(sized)) == len(sized) else named)


def settle(vectors: Mapping[str, RawTensor], widths: Mapping[str, int]) -> dict[str, RawTensor]:
    """The same vectors with an UNNAMED one assigned to the only encoder of a model that has its width, if any.

    A CLIP key in a model whose single encoder is another CLIP is assigned too: bundles use SD 1's key for SD 2.
    """
    if len(widths) != 1 and not any(map(_UNSETTLED.__contains__, vectors)):
        return dict(vectors)
    settled: dict[str, RawTensor] = {}
    for key, tensor in vectors.items():
        base, out = split_out(key)
        if base != UNNAMED and not (_is_clip(base) and len(widths) == 1 and _is_clip(*widths)):
            settled[key] = tensor
            continue
        fitting = [encoder for encoder, size in widths.items() if tensor.shape and size == tensor.shape[-1]]
        settled[fitting[0] + out if len(fitting) == 1 else key] = tensor
    return settled


def _is_clip(key: str) -> bool:
    return key.startswith("clip_")


def split_out(key: str) -> tuple[str, str]:
    """`clip_l_out` as `clip_l` and `_out`."""
    return (key.removesuffix("_out"), "_out") if key.endswith("_out") else (key, "")


def outputs(keys: Iterable[str]) -> list[str]:
    """The keys of output vectors, which cannot be converted to input vectors."""
    return [key for key in keys if key.endswith("_out")]


def is_rows(tensor: RawTensor) -> bool:
    """Whether the shape can be vectors at all: not a number, and at most two dimensions."""
    return 1 <= len(tensor.shape) <= 2


def as_rows(tensor: RawTensor) -> RawTensor:
    """A single vector as one row; anything else as it is."""
    return RawTensor(tensor.dtype, (1, *tensor.shape), tensor.stored) if len(tensor.shape) == 1 else tensor


def columns(tensor: RawTensor, first: int, last: int) -> RawTensor:
    """Columns `first` to `last` of each row, of numbers that take whole bytes."""
    count, width = tensor.shape
    size, data = len(tensor.stored) // (count * width), tensor.data
    parts = [bytes(data[(row * width + first) * size : (row * width + last) * size]) for row in range(count)]
    return RawTensor(tensor.dtype, (count, last - first), b"".join(parts))


def _halves(key: str, tensor: RawTensor) -> dict[str, RawTensor] | None:
    cut, whole = JOINED
    whole_bytes = DTYPE_BITS[tensor.dtype] % 8 == 0
    if key in NAMELESS and len(tensor.shape) == 2 and tensor.shape[0] and tensor.shape[1] == whole and whole_bytes:
        return {"clip_l": columns(tensor, 0, cut), "clip_g": columns(tensor, cut, whole)}
    return None


def _named(key: str, width: int | None) -> str:
    base, out = split_out(key)
    if base in NAMELESS:
        return BY_WIDTH.get(width or 0, UNNAMED) + out
    return SPELLINGS.get(base, base) + out


def _sized(key: str, width: int | None) -> str:
    base, out = split_out(key)
    if base.startswith("clip_") and width is not None:
        return BY_WIDTH.get(width, base) + out
    return key
