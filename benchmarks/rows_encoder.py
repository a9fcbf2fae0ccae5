"""Goal 4: a whole CLIP-L step beside the same encoder whose gradient stops at its input."""

from __future__ import annotations

import json
from itertools import cycle
from typing import Any

import torch
from measure import Row, in_fresh_process, in_turn, ratios
from ours import Slots
from scene import LENGTH, VOCABULARY, make_scene
from torch import Tensor, nn

ROUNDS = 9
COUNTS = (1, 10, 1000)
CLIP_L = {
    "vocab_size": VOCABULARY, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "max_position_embeddings": LENGTH, "hidden_act": "quick_gelu", "projection_dim": 768,
    "eos_token_id": VOCABULARY - 1, "bos_token_id": VOCABULARY - 2,
}  # fmt: skip


def rows() -> list[Row]:
    return [Row(**row) for row in in_fresh_process("rows_encoder.py", keep_pages=True)]  # type: ignore[union-attr]


class Leaf(nn.Module):
    """In the place of the token embedding: what it would have looked up, as a leaf that takes the gradient."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, ids: Tensor) -> Tensor:
        return self.base(ids).detach().requires_grad_()


def measured() -> list[Row]:
    modes: dict[str, Any] = {"floor": _floor()}
    modes |= {str(embeddings): _step(embeddings) for embeddings in COUNTS}
    seconds = in_turn(modes, ROUNDS, dict.fromkeys(modes, 1))
    return [
        Row(f"whole CLIP-L step, {embeddings} embeddings", "<= 1.05 of the encoder alone", 1.05,
            ratios(seconds[str(embeddings)], seconds["floor"]))
        for embeddings in COUNTS
    ]  # fmt: skip


def _encoder() -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    return CLIPTextModel(CLIPTextConfig(**CLIP_L)).requires_grad_(False)


def _floor() -> Any:
    encoder, scene = _encoder(), make_scene(1, 768)
    encoder.set_input_embeddings(Leaf(encoder.get_input_embeddings()))
    captions = cycle(scene.plain.unsqueeze(1))

    def step() -> None:
        encoder(next(captions)).last_hidden_state.backward(scene.pull)

    return step


def _step(embeddings: int) -> Any:
    encoder = _encoder()
    scene = make_scene(embeddings, 768, encoder.get_input_embeddings().weight.detach())
    slots = Slots(scene, encoder)

    def step() -> None:
        ids = slots.prepare()
        encoder(ids).last_hidden_state.backward(scene.pull)
        slots.learn()

    return step


if __name__ == "__main__":
    print(json.dumps([vars(row) for row in measured()]))
