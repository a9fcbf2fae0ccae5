"""Frozen blocks of a part that rest in host memory: `[model.offload] denoiser = 0.7`.

A block's weights are copied to the device when it runs, and the next block's while it computes. Each block is
checkpointed: the backward pass computes it again, with a copy that lives until the gradients of this block are done. So
the device has at most the weights of two blocks beside those that stay there. Copies are exact, and so are results.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

PIECE, ALIGNMENT = 1 << 28, 512  # bytes
SMALL = 0.05  # lists of modules with a smaller share of a part's weights are no blocks
Slot = tuple[dict[str, Any], str]  # the table of a module's weights or buffers, and a name in it


def blocks_of(part: nn.Module) -> list[nn.Module]:
    """The blocks of a denoiser, text encoder or VAE in the order of their use, which is that of their registration.

    Those of its outermost lists of modules, but for lists with a small share of its weights.
    """
    total = sum(weight.numel() for weight in part.parameters())
    found: list[nn.Module] = []
    for one in _block_lists(part):
        if sum(weight.numel() for block in one for weight in block.parameters()) >= SMALL * total:
            found += one
    return found


def _block_lists(module: nn.Module) -> Iterator[Sequence[nn.Module]]:
    """Outermost lists of modules that run one after the other; Stable Cascade has lists of such lists."""
    children = dict(module.named_children())
    if "mid_block" in children and "up_blocks" in children:  # U-Nets register it last, and run it between
        children["up_blocks"] = children.pop("up_blocks")
    for name, child in children.items():
        if name == "mid_block":
            yield (child,)
        elif isinstance(child, nn.ModuleList) and not any(isinstance(one, nn.ModuleList) for one in child):
            yield list(child)
        else:
            yield from _block_lists(child)


def offloaded(count: int, share: float) -> list[int]:
    """Which of `count` blocks are offloaded: a share of them, spread evenly, so that copies and products overlap."""
    return [at for at in range(count) if int((at + 1) * share + 1e-9) > int(at * share + 1e-9)]


class Offload:
    """The blocks of one part on its device; those offloaded rest in host memory.

    `device` is where the part computes. Make it when the part is on the CPU, in its final dtype.
    """

    def __init__(self, part: nn.Module, share: float, device: torch.device) -> None:
        self.device = device
        blocks = blocks_of(part)
        self._blocks = [blocks[at] for at in offloaded(len(blocks), share)]
        self._last = -1
        self._ahead: tuple[int, list[Tensor]] | None = None  # the block that was copied before its use, and its copies
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        resting = {id(module) for block in self._blocks for module in block.modules()}
        for module in part.modules():
            if id(module) not in resting:
                _move(module, device)
        if device.type == "cuda":
            _pin([table[name] for block in self._blocks for table, name in slots(block)])
        for at, block in enumerate(self._blocks):
            self._wrap(block, at)
        for block in blocks:
            _checkpointed(block)
        part.offload = self  # type: ignore[assignment]

    def fetch(self, tensor: Tensor) -> Tensor:
        """A copy of a tensor on the device, made now."""
        return tensor.to(self.device, non_blocking=True, copy=True)

    def _wrap(self, block: nn.Module, at: int) -> None:
        inner = block.forward

        def forward(*args: Any, **options: Any) -> Any:
            with self._resident(block, at):
                return inner(*args, **options)

        block.forward = forward

    @contextmanager
    def _resident(self, block: nn.Module, at: int) -> Iterator[None]:
        """Within it the frozen weights of a block are copies on the device.

        Not the weights' own data are changed: products of the recomputed pass keep the copies that they need for the
        gradient, and nothing else does.
        """
        places = slots(block)
        own = [table[name] for table, name in places]
        copies = self._take(at, own)
        for (table, name), copy in zip(places, copies, strict=True):
            table[name] = copy
        step = -1 if at < self._last or at == len(self._blocks) - 1 == self._last else 1  # backward passes go back
        self._last = at
        self._prefetch(at + step)
        try:
            yield
        finally:
            for (table, name), tensor in zip(places, own, strict=True):
                table[name] = tensor

    def _take(self, at: int, tensors: Sequence[Tensor]) -> list[Tensor]:
        ahead, self._ahead = self._ahead, None
        if ahead is not None and self._stream is not None:  # also before copies that are not used are freed
            torch.cuda.current_stream(self.device).wait_stream(self._stream)
        if ahead is None or ahead[0] != at or len(ahead[1]) != len(tensors):
            return [self.fetch(tensor) for tensor in tensors]
        return ahead[1]

    def _prefetch(self, at: int) -> None:
        if 0 <= at < len(self._blocks):
            tensors = [table[name] for table, name in slots(self._blocks[at])]
            self._ahead = at, self._copy(tensors)

    def _copy(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Copies made beside what is computed now, where there is a stream for them.

        Their memory is that of the computing stream: it waits for them, so it is free again when they are. Memory of
        the stream of copies would be free only when the device has reached that point, which lags behind this process.
        """
        if self._stream is None:
            return [self.fetch(tensor) for tensor in tensors]
        copies = [torch.empty_like(tensor, device=self.device) for tensor in tensors]
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            for copy, tensor in zip(copies, tensors, strict=True):
                copy.copy_(tensor, non_blocking=True)
        return copies


def slots(block: nn.Module) -> list[Slot]:
    """Where the frozen weights and the buffers of a block are. A LoRA in it trains on the device, and stays there."""
    return [
        (table, name)
        for module in block.modules()
        for table in (module._parameters, module._buffers)
        for name, tensor in table.items()
        if tensor is not None and not tensor.requires_grad
    ]


def _pin(tensors: Sequence[Tensor]) -> None:
    """Move tensors to page-locked memory, from which copies are made beside products.

    In pieces of 256 MiB: PyTorch rounds each piece up to a power of two.
    """
    pool = torch.empty(0, dtype=torch.uint8)
    for tensor in tensors:
        data = tensor.data
        size = -(-data.nbytes // ALIGNMENT) * ALIGNMENT
        if size > len(pool):
            pool = torch.empty(max(PIECE, size), dtype=torch.uint8, pin_memory=True)
        own, pool = pool[: data.nbytes], pool[size:]
        tensor.data = own.view(data.dtype).view(data.shape).copy_(data)


def _checkpointed(block: nn.Module) -> None:
    """Have a block computed again in the backward pass."""
    inner = block.forward

    def forward(*args: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return inner(*args, **options)
        options.pop("past_key_values", None)  # of language models: computed again, a layer would append to it again
        return checkpoint(inner, *args, use_reentrant=False, **options)

    block.forward = forward


def _move(module: nn.Module, device: torch.device) -> None:
    """Move a module's own weights and buffers, not those of its children."""
    for table in (module._parameters, module._buffers):
        for tensor in table.values():
            if tensor is not None:
                tensor.data = tensor.data.to(device)


def device_of(part: nn.Module) -> torch.device:
    """Where a part computes."""
    own = getattr(part, "offload", None)
    return own.device if isinstance(own, Offload) else next(part.parameters()).device
