"""Locality regularisation (Roich et al. 2021, Pivotal Tuning, section 3.3), carried over to text-to-image models.

There a generator is tuned around a pivot w_p. Codes w_r on the way from the pivot to others w_z must give the picture
that the untouched generator gives. Here the pivot is what the text encoders say of a caption with the word, w_z what
they say of another prompt, w_r = w_p + α (w_z - w_p), and what must agree is the denoiser's answer for the same noisy
latents. The paper's α is a length in its own space, which a model's text states have no measure for; here it is a share
of the way. Its pictures are compared by L2 and LPIPS; answers of a denoiser by L2 alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..data.batch import Whole
from ..models.denoisers import Denoiser, Text
from ..models.load import Model
from ..processes import Processes
from .draws import generator
from .loss import Question
from .untouched import Copies, untouched


@dataclass(eq=False)
class Locality:
    """What a stage needs for it. `before` has the values of weights that are fine-tuned; LoRAs are switched off.

    `encoders` says that text encoders are tuned too: then the other prompts' states carry a gradient. `measured` is
    the last difference, before its weight, over this `share` of the batch.
    """

    model: Model
    denoiser: Denoiser
    prompts: tuple[str, ...]
    weight: float
    alpha: float
    every: int
    seed: int
    before: Copies = field(default_factory=dict)
    encoders: bool = False
    measured: float | None = None
    share: float = 0.0

    def loss(
        self, text: Text, asked: Question, sizes: Tensor | None, number: int, whole: Whole | None = None
    ) -> Tensor | None:
        """The weighted difference for batch `number`, or None where it is not its turn.

        `text` is what the encoders say of the batch's captions. The words feel nothing of it: they are the pivot.
        Of a part of the batch it is the part's share in the whole's difference.
        """
        if number % self.every:
            return None
        count, place = (len(asked.noisy), slice(None)) if whole is None else (whole.size, whole.place)
        others = self._others(count, number)[place]
        pipe, pivot = self.model.pipe, _held(text)
        with untouched(self._models(), self.before):
            near = between(pivot, self.denoiser.encode(pipe, others), self.alpha)
            target = self.denoiser.predict(pipe, asked.noisy, asked.timesteps, near, sizes)
        with torch.set_grad_enabled(self.encoders):
            near = between(pivot, self.denoiser.encode(pipe, others), self.alpha)
        answer = self.denoiser.predict(pipe, asked.noisy, asked.timesteps, near, sizes)
        difference = (answer.float() - target.float()).square().mean()
        self.measured, self.share = float(difference.detach()), len(others) / count
        return self.weight * self.share * difference

    def seen(self, processes: Processes) -> float | None:
        """The last difference, over what each of the processes measured."""
        if processes.count == 1:
            return self.measured
        total, share = processes.numbers([(self.measured or 0.0) * self.share, self.share])
        return total / share if share else None

    def _others(self, count: int, number: int) -> list[str]:
        drawn = torch.randint(len(self.prompts), (count,), generator=generator(self.seed, "locality", number))
        return [self.prompts[place] for place in drawn.tolist()]

    def _models(self) -> list[nn.Module]:
        return [self.model.denoiser, *(encoder.module for encoder in self.model.encoders)]


def between(pivot: Text, other: Text, alpha: float) -> Text:
    """w_r: the share `alpha` of the way from one text's states to another's."""
    pooled = None
    if pivot.pooled is not None and other.pooled is not None:
        pooled = torch.lerp(pivot.pooled, other.pooled, alpha)
    return Text(torch.lerp(pivot.states, other.states, alpha), pooled)


def _held(text: Text) -> Text:
    return Text(text.states.detach(), None if text.pooled is None else text.pooled.detach())
