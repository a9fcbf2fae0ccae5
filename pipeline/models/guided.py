"""Denoisers that are distilled for guidance: they take its value as an input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Guided:
    """`guidance` is the value given to models that are distilled for it (FLUX.1 dev); others (schnell) take none."""

    guidance: float = 1.0

    def values(self, transformer: Any, noisy: Tensor) -> Tensor | None:
        """The guidance of each image, (batch,), or None for a model without this input."""
        if not transformer.config.guidance_embeds:
            return None
        return torch.full((len(noisy),), self.guidance, device=noisy.device, dtype=noisy.dtype)
