"""Encoded captions: batches of one length, and a cache for encoders that are frozen."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from ..embeddings.chunks import even_chunks

T = TypeVar("T")
LIMIT = 1 << 30  # bytes of memory; of SDXL in bfloat16 some 3,400 captions


@dataclass(frozen=True, eq=False)
class Text:
    """Encoded captions: `states` (batch, tokens, width), and `mask` (batch, tokens) of those that the denoiser uses.

    Models that use several layers of an encoder have (batch, tokens, layers, width).
    `pooled` is (batch, width), for models that have it. Without a mask all states are used.
    """

    states: Tensor
    pooled: Tensor | None = None
    mask: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Text:
        """Apply a function to every tensor."""
        return Text(*(None if one is None else change(one) for one in (self.states, self.pooled, self.mask)))  # type: ignore[arg-type]

    @property
    def bytes(self) -> int:
        return sum(one.nbytes for one in (self.states, self.pooled, self.mask) if one is not None)


class Encodes(Protocol):
    """The part of a denoiser's interface that encodes captions."""

    def encode(self, pipe: Any, captions: list[str]) -> Text: ...


def join(texts: Sequence[Text]) -> Text:
    """One batch of several: states are padded with zeros to the longest, and the mask excludes the padding."""
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
    """Captions of different lengths, each (tokens, width), as one padded text with a mask."""
    return join(
        [Text(one.unsqueeze(0), mask=torch.ones(1, len(one), dtype=torch.bool, device=one.device)) for one in states]
    )


def lengths_of(text: Text) -> list[Tensor]:
    """The captions of a text, each (tokens, width) without padding."""
    if text.mask is None:
        return list(text.states)
    return [states[mask] for states, mask in zip(text.states, text.mask, strict=True)]


def pad(text: Text, tokens: int) -> Text:
    """The text with this many tokens; ValueError if there is no mask to exclude the padding."""
    missing = tokens - text.states.shape[1]
    if missing == 0:
        return text
    if text.mask is None:
        raise ValueError(f"texts of {text.states.shape[1]} and {tokens} tokens have no mask")
    states = functional.pad(text.states, (*[0, 0] * (text.states.ndim - 2), 0, missing))
    return Text(states, text.pooled, functional.pad(text.mask, (0, missing), value=False))


def with_blank(text: Text, blank: Text, captions: Sequence[str]) -> Text:
    """The text with `blank` (a batch of one, of the same length) in place of every empty caption."""
    empty = torch.tensor([not caption for caption in captions], device=text.states.device)

    def either(one: Tensor, other: Tensor) -> Tensor:
        return torch.where(empty.reshape(-1, *[1] * (one.ndim - 1)), other, one)

    assert text.mask is not None
    assert blank.mask is not None
    return Text(either(text.states, blank.states), mask=either(text.mask, blank.mask))


def between(first: Text, second: Text, alpha: float) -> Text:
    """Linear interpolation from one text to another by `alpha`; the mask includes the states of both."""
    longest = max(first.states.shape[1], second.states.shape[1])
    one, other = pad(first, longest), pad(second, longest)
    pooled = mask = None
    if one.pooled is not None and other.pooled is not None:
        pooled = torch.lerp(one.pooled, other.pooled, alpha)
    if one.mask is not None and other.mask is not None:
        mask = one.mask | other.mask
    return Text(torch.lerp(one.states, other.states, alpha), pooled, mask)


class LastUsed(Generic[T]):
    """The last used values by key, of at most `limit` bytes together; the newest is kept whatever its size."""

    def __init__(self, limit: int, size: Callable[[T], int]) -> None:
        self.limit, self.size = limit, size
        self._values: OrderedDict[Hashable, T] = OrderedDict()
        self._bytes = 0

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of a key, made if it is not there."""
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        value = self._values[key] = make()
        self._bytes += self.size(value)
        while self._bytes > self.limit and len(self._values) > 1:
            self._bytes -= self.size(self._values.popitem(last=False)[1])
        return value


class CaptionCache:
    """Encodes captions one by one, so that none depends on its batch, and caches the last used ones in CPU memory."""

    def __init__(self, denoiser: Encodes, pipe: Any, limit: int = LIMIT) -> None:
        self.denoiser, self.pipe = denoiser, pipe
        self._cached = LastUsed[Text](limit, lambda text: text.bytes)

    def __call__(self, captions: Sequence[str], device: torch.device) -> Text:
        """These captions as one batch on `device`."""
        with even_chunks(self.pipe, captions) as chunks:
            texts = [self._cached.get((one, chunks), partial(self._encode, one)) for one in captions]
        return join(texts).map(lambda one: one.to(device))

    @torch.no_grad()
    def _encode(self, caption: str) -> Text:
        return self.denoiser.encode(self.pipe, [caption]).map(lambda one: one.cpu())
