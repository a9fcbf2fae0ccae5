"""Stands in for an encoder's token embedding: the vocabulary stays as it is, slots hold the new vectors.

Ids below `first_slot` go to the frozen table. Id `first_slot + j` is slot `j`: row `j` of `active`, the rows that the
present prompts need. Slots are handed out anew for each batch, so tokenizer and table do not grow with the number of
words, and the whole table is never copied.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SlotTable(nn.Module):
    """A token embedding with `active` rows behind the frozen `base`."""

    def __init__(self, base: nn.Module, first_slot: int) -> None:
        super().__init__()
        self.base = base
        self.first_slot = first_slot
        self.active: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """The frozen vocabulary, (tokens, width): what other code expects of a token embedding."""
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        return weight

    def forward(self, ids: Tensor) -> Tensor:
        """(batch, length) ids to (batch, length, width) vectors in the data type of the base table."""
        if self.active is None or not len(self.active):  # an accelerator has no row 0 to read then
            found: Tensor = self.base(ids)
            return found
        slots = ids - self.first_slot
        new = slots >= 0
        found = self.base(ids.masked_fill(new, 0))
        if ids.device.type == "cpu":  # no synchronisation to fear: touch the new positions only
            places = new.nonzero(as_tuple=True)
            return found.index_put(places, self.active[slots[places]].to(found.dtype))
        rows = self.active[slots.clamp(min=0)].to(found.dtype)
        return torch.where(new.unsqueeze(-1), rows, found)
