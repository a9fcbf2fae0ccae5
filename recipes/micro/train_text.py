"""Trains the text encoder to tell what a caption says, before the denoiser is trained on its answers."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer

from .build import WIDTH, build_text_encoder
from .grammar import BACKGROUNDS, SHAPES, TEXTURES, Scene
from .text import Captions, Compound, encode, slot_id, tokenise
from .training import fit

CLASSES = (1 + len(SHAPES), 1 + len(TEXTURES), 3, 1 + len(BACKGROUNDS))


def train_text(
    scenes: list[Scene], tokenizer: CLIPTokenizer, folder: Path, steps: int
) -> tuple[CLIPTextModel, Compound]:
    """The encoder and the compound network, trained together.

    A linear reader must find everything that was told in the state at the end mark, or at any padding behind
    it. A denoiser that starts with such an encoder obeys captions ten times sooner.
    """
    encoder, compound = build_text_encoder(tokenizer), Compound()
    reader = nn.Linear(WIDTH, sum(CLASSES) + 12)
    captions = tokenise(scenes, tokenizer, seed=2)
    slot = slot_id(tokenizer)

    def loss_of(step: int) -> Tensor:
        batch = captions.rows(torch.randint(len(captions.ids), (48,)))
        length = 77 if step % 4 == 0 else 32  # no caption is longer than 32
        states = encode(encoder, compound, batch, slot, length)
        ends = (batch.ids[:, :length] == tokenizer.eos_token_id).int().argmax(1)
        later = ends + (torch.rand(len(ends)) * (length - ends)).long()
        rows = torch.arange(len(ends))
        return reading_loss(reader(states[rows, ends]), batch) + reading_loss(reader(states[rows, later]), batch)

    modules = nn.ModuleDict({"encoder": encoder, "compound": compound, "reader": reader})
    optimizer = torch.optim.AdamW(modules.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01)
    fit(modules, loss_of, optimizer, steps, folder / "text.pt")
    return encoder, compound


def reading_loss(answers: Tensor, captions: Captions) -> Tensor:
    """How far a reader's answers, (count, sum(CLASSES) + 12), are from what the captions tell."""
    *classes, colours = answers.split([*CLASSES, 12], dim=1)
    loss = sum(functional.cross_entropy(answer, captions.classes[:, n]) for n, answer in enumerate(classes))
    colours, told = colours.unflatten(1, (3, 4)), captions.colours[..., 3]
    loss = loss + functional.binary_cross_entropy_with_logits(colours[..., 3], told)
    return loss + 4 * ((colours[..., :3] - captions.colours[..., :3]).square() * told[..., None]).mean()
