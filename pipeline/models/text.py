"""Encoded captions: what a denoiser is told, joined to batches of one length, and kept where nothing changes them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

LIMIT = 1 << 30  # bytes of memory; of SDXL in bfloat16 some 3,400 captions


@dataclass(frozen=True, eq=False)
class Text:
    """Encoded captions: `states` (batch, tokens, width), of which `mask` (batch, tokens) says which the denoiser sees.

    Where the model has one, `pooled` is (batch, width). Without a mask it sees all states.
    """

    states: Tensor
    pooled: Tensor | None = None
    mask: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Text:
        """The same function of every tensor."""
        return Text(*(None if one is None else change(one) for one in (self.states, self.pooled, self.mask)))  # type: ignore[arg-type]

    @property
    def bytes(self) -> int:
        return sum(one.nbytes for one in (self.states, self.pooled, self.mask) if one is not None)


class Encodes(Protocol):
    """What keeps captions needs of a kind of denoiser."""

    def encode(self, pipe: Any, captions: list[str]) -> Text: ...


def join(texts: Sequence[Text]) -> Text:
    """One batch of several: states are padded with zeros to the longest, which the mask hides from the denoiser."""
    longest = max(text.states.shape[1] for text in texts)
    padded = [pad(text, longest) for text in texts]
    pooled = [text.pooled for text in padded if text.pooled is not None]
    masks = [text.mask for text in padded if text.mask is not None]
    return Text(
        torch.cat([text.states for text in padded]),
        torch.cat(pooled) if pooled else None,
        torch.cat(masks) if masks else None,
    )


def of_lengths(states: Sequence[Tensor]) -> Text:
    """Captions of different length, each (tokens, width), as one text whose mask ends where they do."""
    return join(
        [Text(one.unsqueeze(0), mask=torch.ones(1, len(one), dtype=torch.bool, device=one.device)) for one in states]
    )


def lengths_of(text: Text) -> list[Tensor]:
    """The captions of a text apart again, each (tokens, width) without its padding."""
    if text.mask is None:
        return list(text.states)
    return [states[mask] for states, mask in zip(text.states, text.mask, strict=True)]


def pad(text: Text, tokens: int) -> Text:
    """The text with this many tokens; ValueError where a model that sees all states would see the padding."""
    missing = tokens - text.states.shape[1]
    if missing == 0:
        return text
    if text.mask is None:
        raise ValueError(f"texts of {text.states.shape[1]} and {tokens} tokens have no mask")
    states = functional.pad(text.states, (0, 0, 0, missing))
    return Text(states, text.pooled, functional.pad(text.mask, (0, missing), value=False))


def between(first: Text, second: Text, alpha: float) -> Text:
    """The share `alpha` of the way from one text's states to another's; the denoiser sees what it sees of either."""
    longest = max(first.states.shape[1], second.states.shape[1])
    one, other = pad(first, longest), pad(second, longest)
    pooled = mask = None
    if one.pooled is not None and other.pooled is not None:
        pooled = torch.lerp(one.pooled, other.pooled, alpha)
    if one.mask is not None and other.mask is not None:
        mask = one.mask | other.mask
    return Text(torch.lerp(one.states, other.states, alpha), pooled, mask)


class Texts:
    """Encodes captions one by one, so that none depends on its batch or on what was kept; keeps the last used ones.

    They lie in the host's memory, the texts that are asked for on the model's device.
    """

    def __init__(self, denoiser: Encodes, pipe: Any, limit: int = LIMIT) -> None:
        self.denoiser, self.pipe, self.limit = denoiser, pipe, limit
        self._kept: OrderedDict[str, Text] = OrderedDict()
        self._bytes = 0

    def __call__(self, captions: Sequence[str], device: torch.device) -> Text:
        """The text of these captions as one batch."""
        return join([self._one(caption) for caption in captions]).map(lambda one: one.to(device))

    def _one(self, caption: str) -> Text:
        if caption in self._kept:
            self._kept.move_to_end(caption)
            return self._kept[caption]
        with torch.no_grad():
            text = self.denoiser.encode(self.pipe, [caption]).map(lambda one: one.cpu())
        self._kept[caption] = text
        self._bytes += text.bytes
        while self._bytes > self.limit and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].bytes
        return text
