"""Captions once encoded are kept, in stages that change nothing of how a text is read."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch

from ..models.denoisers import Denoiser, Text

LIMIT = 1 << 30  # bytes of memory; of SDXL in bfloat16 some 3,400 captions


class Texts:
    """Encodes captions one by one, so that none depends on its batch or on what was kept; the last used ones are kept.

    They lie in the host's memory, the texts that are asked for on the model's device.
    """

    def __init__(self, denoiser: Denoiser, pipe: Any, limit: int = LIMIT) -> None:
        self.denoiser, self.pipe, self.limit = denoiser, pipe, limit
        self._kept: OrderedDict[str, Text] = OrderedDict()
        self._bytes = 0

    def __call__(self, captions: Sequence[str], device: torch.device) -> Text:
        """Text of these captions, (batch, tokens, width) and where the model has them pooled (batch, width)."""
        texts = [self._one(caption) for caption in captions]
        states = torch.cat([text.states for text in texts]).to(device)
        pooled = [text.pooled for text in texts if text.pooled is not None]
        return Text(states, torch.cat(pooled).to(device) if pooled else None)

    def _one(self, caption: str) -> Text:
        if caption in self._kept:
            self._kept.move_to_end(caption)
            return self._kept[caption]
        with torch.no_grad():
            fresh = self.denoiser.encode(self.pipe, [caption])
        text = Text(fresh.states.cpu(), None if fresh.pooled is None else fresh.pooled.cpu())
        self._kept[caption] = text
        self._bytes += _size(text)
        while self._bytes > self.limit and len(self._kept) > 1:
            self._bytes -= _size(self._kept.popitem(last=False)[1])
        return text


def _size(text: Text) -> int:
    return text.states.nbytes + (0 if text.pooled is None else text.pooled.nbytes)
