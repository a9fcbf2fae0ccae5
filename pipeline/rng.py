"""Every random choice of a run as a function of seed, purpose and step.

No generator has state between steps, so the choices of step 300 are the same whether steps 1-299 ran in this process,
in another one or on another device: they are drawn on the CPU.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator for one purpose, for instance `generator(7, "noise", 300)`."""
    import torch

    text = "/".join(str(part) for part in (seed, *purpose))
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    return torch.Generator().manual_seed(number >> 1)
