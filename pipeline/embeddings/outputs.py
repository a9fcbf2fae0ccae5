"""Output embeddings: vectors that replace a text encoder's output at the positions of a placeholder.

As OneTrainer's `is_output_embedding`: the placeholder still takes its tokens in the prompt, with zeros as their input.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Table(Protocol):
    """What the token table of an injection knows after a call of the encoder (`injection.SlotTable`)."""

    active: Tensor | None
    outputs: Tensor | None
    slots: Tensor | None


class OutputHook:
    """Replaces one hidden state of an encoder while it is on."""

    def __init__(self, module: nn.Module, state: int, table: Table) -> None:
        self.module, self.state, self.table = module, state, table
        self._handle: Any = None
        self.on()

    def on(self) -> None:
        """Replace the output from now on."""
        if self._handle is None:
            self._handle = self.module.register_forward_hook(self._replace)

    def off(self) -> None:
        """Leave the output unchanged. Calling it twice is allowed."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _replace(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        if self.table.outputs is None or self.table.slots is None:
            return output
        if self.state == -1:
            output.last_hidden_state = self._replaced(output.last_hidden_state)
        else:
            states = list(output.hidden_states)
            states[self.state] = self._replaced(states[self.state])
            output.hidden_states = tuple(states)
        return output

    def _replaced(self, states: Tensor) -> Tensor:
        """(batch, tokens, width) states with the active rows in place of their slots."""
        assert self.table.active is not None
        assert self.table.outputs is not None
        slots = self.table.slots
        assert slots is not None
        slots = slots.reshape(states.shape[:2])  # of a prompt in chunks: a row for each chunk
        rows = slots.clamp(min=0)
        chosen = (slots >= 0) & self.table.outputs.to(slots.device)[rows]
        return torch.where(chosen.unsqueeze(-1), self.table.active.to(slots.device)[rows].to(states.dtype), states)


@torch.no_grad()
def encoded_vectors(encoder: Any, text: str, count: int) -> Tensor:
    """The first `count` states of a text, (count, width) float32: initial vectors of an output embedding.

    `encoder` is an `injection.Encoder` with an `output`. The text is continued with stars where it has fewer tokens. A
    begin token, where the tokenizer has one, is skipped.
    """
    found = encoder.tokenizer(text + " *" * count, return_tensors="pt", truncation=True).input_ids
    ids = found.to(encoder.table.device)
    output = encoder.module(input_ids=ids, output_hidden_states=True)
    states = output.last_hidden_state if encoder.output == -1 else output.hidden_states[encoder.output]
    first = int(ids[0, 0] == encoder.tokenizer.bos_token_id)
    vectors: Tensor = states[0, first : first + count].float().cpu()
    return vectors
