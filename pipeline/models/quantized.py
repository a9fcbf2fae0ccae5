"""Frozen linear layers of 4 or 8 bits a weight: `[model.weights] denoiser = "nf4"`, `t5 = "int8"`.

The weights rest packed and are unpacked for each product, forward and backward, so that gradients reach what is before
and beside a layer (embeddings, LoRAs) without a 16-bit copy being kept. nf4 is packed by bitsandbytes (QLoRA, Dettmers
et al. 2023); int8 and float8 are one scale per row, so they need no package and run on every device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...converters.families import Family
from ..errors import StageError
from ..recipe.defaults import DENOISER, NO_NF4
from ..recipe.model import ModelSpec

BLOCK = 64  # weights of nf4 that share a scale
LARGEST = {"int8": 127.0, "float8": 448.0}  # the largest value that each number format can hold
GGUF = "gguf "  # kinds of layers from such files: with the number of the format
BITS = {"nf4": 4 + 32 / BLOCK, "int8": 8.0, "float8": 8.0}


class QuantizedLinear(nn.Linear):
    """A frozen linear layer with packed weights.

    `weight` is int8 whatever is in it: transformers and diffusers convert activations to the dtype of weights that are
    floating-point numbers, and to no other. Products are in the dtype of the input.
    """

    def __init__(self, layer: nn.Linear, kind: str, device: torch.device, rest: torch.device | None = None) -> None:
        """`layer` keeps its weights. They are packed on `device` and rest there, or on `rest`.

        Raises StageError when a package is missing.
        """
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.kind = layer.in_features, layer.out_features, kind
        packed, scale = _pack(layer.weight.detach().to(device), kind)
        rest = rest or device
        self.weight = nn.Parameter(packed.view(torch.int8).to(rest), requires_grad=False)
        self.scale: Tensor | None
        self.register_buffer("scale", scale.to(rest))
        bias = layer.bias
        self.bias = None if bias is None else nn.Parameter(bias.detach().to(rest), requires_grad=False)

    @classmethod
    def from_gguf(cls, layer: Any) -> QuantizedLinear:
        """A layer as diffusers' reader of GGUF files makes it, with the same packed weights."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.in_features, made.out_features = layer.in_features, layer.out_features
        made.kind = f"{GGUF}{int(layer.weight.quant_type)}"
        made.weight = nn.Parameter(layer.weight.as_tensor().view(torch.int8), requires_grad=False)
        made.register_buffer("scale", None)  # it is among the packed weights
        made.bias = layer.bias
        return made

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weights, (out, in), in this dtype."""
        return _unpack(self.weight, self.scale, self.kind, (self.out_features, self.in_features), dtype)

    def forward(self, input: Tensor) -> Tensor:
        """(…, in) to (…, out)."""
        shape = self.out_features, self.in_features
        found: Tensor = _Product.apply(input, self.weight, self.scale, self.bias, self.kind, shape)
        return found


class _Product(torch.autograd.Function):
    """The product with packed weights, which the backward pass unpacks again."""

    @staticmethod
    def forward(
        ctx: Any,
        given: Tensor,
        packed: Tensor,
        scale: Tensor | None,
        bias: Tensor | None,
        kind: str,
        shape: tuple[int, int],
    ) -> Tensor:
        ctx.save_for_backward(packed, scale)  # not the layer: its weights may be away by then
        ctx.form = kind, shape
        weight = _unpack(packed, scale, kind, shape, given.dtype)
        return functional.linear(given, weight, None if bias is None else bias.to(given.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (packed, scale), (kind, shape) = ctx.saved_tensors, ctx.form
        weight = _unpack(packed, scale, kind, shape, gradients[0].dtype)
        return gradients[0] @ weight, None, None, None, None, None


def _unpack(packed: Tensor, scale: Tensor | None, kind: str, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Packed weights as (out, in) numbers of this dtype."""
    if scale is None:
        return _unpack_gguf(packed, int(kind.removeprefix(GGUF)), shape, dtype)
    if kind == "nf4":
        return _unpack_nf4(packed, scale, shape, dtype)
    weight = packed.view(torch.float8_e4m3fn) if kind == "float8" else packed
    return weight.to(dtype).mul_(scale.to(dtype))


def _unpack_gguf(packed: Tensor, kind: int, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Weights in one of GGUF's formats, by diffusers' functions."""
    from diffusers.quantizers.gguf.utils import GGML_QUANT_SIZES, dequantize_functions

    block, size = GGML_QUANT_SIZES[kind]
    blocks = packed.view(torch.uint8).reshape(-1, size)
    unpacked: Tensor = dequantize_functions[kind](blocks, block, size)
    return unpacked.reshape(shape).to(dtype)


def part_key(family: Family, name: str) -> str:
    """The key in `model.weights` and `model.offload` of a model of the pipeline (`unet`, `text_encoder_2`, `vae`).

    Wan's second denoiser has that of the first. Empty for what has none.
    """
    keys = {one.module: one.key for one in family.encoders} | {"vae": "vae", family.denoiser_module: DENOISER}
    return keys.get(name if name in keys else name.removesuffix("_2"), "")


def number_format(spec: ModelSpec, family: Family, name: str) -> str | None:
    """What `model.weights` has for a model of the pipeline, by its name there."""
    return spec.weights.get(part_key(family, name))


def quantize(
    part: nn.Module, kind: str, dtype: torch.dtype, device: torch.device, rest: torch.device | None = None
) -> int:
    """Replace the linear layers of a part in `dtype` by packed ones, one by one; returns how many.

    They are packed on `device`, and rest there, or on `rest`. Token tables, norms and convolutions stay, and so do
    layers that the library keeps in float32. Raises StageError when a package is missing.
    """
    found = list(quantizable(part, dtype))
    for parent, name, layer in found:
        setattr(parent, name, QuantizedLinear(layer, kind, device, rest))
    return len(found)


def keep_gguf_packed(part: nn.Module) -> None:
    """Replace the linear layers of diffusers' reader of GGUF files, which keep unpacked weights for gradients."""
    for parent in list(part.modules()):
        for name, layer in parent.named_children():
            if type(layer).__name__ == "GGUFLinear":
                setattr(parent, name, QuantizedLinear.from_gguf(layer))


def quantizable(part: nn.Module, dtype: torch.dtype) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """Parent, name and layer of every linear layer in this dtype that a packed one can replace."""
    table = getattr(part, "get_input_embeddings", lambda: None)()
    for parent in list(part.modules()):
        for name, layer in parent.named_children():
            # subclasses may use their weights in other ways, as the projection of torch's own attention does
            if type(layer) is not nn.Linear or layer.weight.dtype != dtype:
                continue
            if layer.weight is not getattr(table, "weight", None):  # a head that shares the token table
                yield parent, name, layer


@dataclass(frozen=True)
class PartSize:
    """Numbers of weights of a part or block: all, those in linear layers that can be packed, and the rows of these.

    `largest` is the number of weights in the largest layer that is unpacked: not in the head of a language model, which
    computes nothing here.
    """

    values: int
    linear: int
    rows: int
    largest: int

    def bytes(self, kind: str | None, dtype: torch.dtype) -> int:
        """Bytes that the weights take in `dtype`, the linear layers packed as `kind` (None: none is)."""
        total = self.values * dtype.itemsize
        if kind not in BITS:
            return total
        rows = self.rows * (4 if kind in LARGEST else 0)
        return total + rows + round(self.linear * (BITS[kind] / 8 - dtype.itemsize))


def part_size(part: nn.Module) -> PartSize:
    """The numbers of weights of a part, which may be on the meta device."""
    dtype = next(part.parameters()).dtype
    weights = [(name, layer.weight) for _, name, layer in quantizable(part, dtype)]
    return PartSize(
        values=sum(weight.numel() for weight in part.parameters()),
        linear=sum(weight.numel() for _, weight in weights),
        rows=sum(weight.shape[0] for _, weight in weights),
        largest=max((weight.numel() for name, weight in weights if name != "lm_head"), default=0),
    )


def packed_bytes(part: nn.Module, kind: str | None, dtype: torch.dtype) -> int:
    """Bytes that the weights of a part take in `dtype`, its linear layers packed as `kind` (None: none is)."""
    return part_size(part).bytes(kind, dtype)


def _pack(weight: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """The packed weights of (out, in) and their scale: (out, 1) float32, of nf4 (blocks,) float32."""
    if kind == "nf4":
        return _pack_nf4(weight)
    weight = weight.float()
    scale = weight.abs().amax(dim=1, keepdim=True).div_(LARGEST[kind])
    scale = torch.where(scale > 0, scale, 1.0)
    if kind == "int8":
        return (weight / scale).round_().to(torch.int8), scale
    return (weight / scale).to(torch.float8_e4m3fn), scale


def _nf4() -> Any:
    try:
        from bitsandbytes import functional as packing
    except ImportError:
        raise StageError(f"model.weights: {NO_NF4}") from None
    return packing


@cache
def _nf4_code(device: torch.device) -> Tensor:
    """The sixteen values of nf4 on a device: made for every product, they would be a blocking copy each time."""
    code: Tensor = _nf4().get_4bit_type("nf4", device=device)
    return code


def _pack_nf4(weight: Tensor) -> tuple[Tensor, Tensor]:
    packed, state = _nf4().quantize_4bit(weight.contiguous(), blocksize=BLOCK, quant_type="nf4")
    return packed, state.absmax.float()


def _unpack_nf4(packed: Tensor, scale: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    packing = _nf4()
    code = _nf4_code(packed.device)
    state = packing.QuantState(
        absmax=scale, shape=torch.Size(shape), code=code, blocksize=BLOCK, quant_type="nf4", dtype=dtype
    )
    unpacked: Tensor = packing.dequantize_4bit(packed.view(torch.uint8), state)
    return unpacked
