"""What a training step gets of the data: the one interface between pictures and training."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """One micro-batch: pictures of one shape with a caption each. Everything is on the CPU and float32 unless said.

    `Dataset.at(number)` makes it, as a function of (seed, number) alone.

    - `captions`: as the text encoders get them; "" where the caption was dropped.
    - `latents` (batch, channels, height, width): drawn from what the VAE says of each picture, scaled to the range of
      the denoiser.
    - `mask` (batch, 1, height, width), 0 to 1, in the resolution of the latents: 1 where the loss counts. A picture
      without a mask has ones. None when no picture of the batch has one.
    - `weight` (batch,): how much each picture's loss counts (`loss_weight` of its concept); the loss of a batch is
      the mean of each picture's loss times this.
    - `prior` (batch,), bool: pictures of a concept with `prior = true`, which show what the model should go on
      knowing (prior preservation, DreamBooth).
    - `sizes` (batch, 6): original height and width, top and left of the crop, height and width it is trained at, in
      pixels: SDXL's `time_ids`. The crop's corner counts in the picture resized to cover the trained size.
    - `examples`: numbers of the pictures in `Dataset.examples`, for logs and tests.
    - `whole`: where only some of the batch's pictures are here (several processes), what the others are; else None.
    - `idle`: it counts nothing, and only keeps a process that has nothing to do in step with the others.
    """

    captions: tuple[str, ...]
    latents: Tensor
    mask: Tensor | None
    weight: Tensor
    prior: Tensor
    sizes: Tensor
    examples: tuple[int, ...]
    whole: Whole | None = None
    idle: bool = False


@dataclass(frozen=True, eq=False)
class Whole:
    """The batch that a process has a part of: which part, and each picture's `weight` and `prior`."""

    place: slice
    weight: Tensor
    prior: Tensor

    @property
    def size(self) -> int:
        return len(self.weight)
