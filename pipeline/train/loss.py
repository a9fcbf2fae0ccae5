"""Noise, timesteps and the loss of a step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.dataset import FullBatch
from ..errors import StageError
from ..recipe.options import NoiseOptions, ObjectiveOptions, TimestepOptions
from ..rng import generator


def offset_noise(noise: Tensor, latents: Tensor, options: NoiseOptions, seed: int, step: int) -> Tensor:
    """The noise that the denoiser predicts: with an offset per channel, and a perturbation.

    The offset is Guttenberg's (CrossLabs 2023), its strength increased by the channel's mean as in kohya's scripts
    (`adaptive_noise_scale`); the perturbation is OneTrainer's. They have their own random generators.
    """
    if options.offset or options.offset_adaptive:
        channels = latents.shape[1] if options.offset_per_channel else 1
        drawn = torch.randn(len(latents), channels, 1, 1, generator=generator(seed, "noise offset", step))
        means = latents.mean(dim=(2, 3), keepdim=True).abs()
        noise = noise + (options.offset + options.offset_adaptive * means).clamp(min=0.0) * drawn
    if options.perturbation:
        more = torch.randn(noise.shape, generator=generator(seed, "noise perturbation", step))
        noise = noise + options.perturbation * more
    return noise


def input_noise(noise: Tensor, options: NoiseOptions, seed: int, step: int) -> Tensor:
    """The noise that the denoiser sees (Ning et al. 2023, `input_perturbation` of diffusers' training scripts)."""
    if not options.input_perturbation:
        return noise
    return noise + options.input_perturbation * torch.randn(
        noise.shape, generator=generator(seed, "input perturbation", step)
    )


def require_timesteps(options: TimestepOptions, steps: int) -> None:
    """StageError where none of the model's `steps` timesteps is left, or `high` is more than the model has."""
    if not options.low < (options.high or steps) <= steps:
        raise StageError(
            f"timesteps: low = {options.low} and high = {options.high or steps} leave none of the model's {steps} "
            "timesteps; low must be below high, and high at most that many"
        )


def draw_shares(kind: str, count: int, draw: torch.Generator, options: TimestepOptions) -> Tensor:
    """(count,) numbers in 0..1: uniform, logit-normal or mode (Esser et al. 2024, section 3.1), on the CPU.

    The same numbers as diffusers' `compute_density_for_timestep_sampling` gives from the same generator. The density of
    an inverted parabola is OneTrainer's, 2 - weight * (t - 0.5)² and at least 0.
    """
    if kind == "logit-normal":
        return torch.sigmoid(torch.randn(count, generator=draw) * options.deviation + options.mean)
    share = torch.rand(count, generator=draw)
    if kind == "mode":
        return 1 - share - options.mode_scale * (torch.cos(math.pi * share / 2) ** 2 - 1 + share)
    return _parabola(share, options.parabola_weight) if kind == "inverted-parabola" else share


def _parabola(share: Tensor, weight: float) -> Tensor:
    """Uniform numbers to those of an inverted parabola, by its cumulative distribution in steps of 1e-4."""
    times = torch.linspace(0, 1, 10_001, dtype=torch.float64)
    density = (2 - weight * (times - 0.5) ** 2).clamp(min=0)
    total = torch.cat([torch.zeros(1, dtype=torch.float64), torch.cumsum((density[1:] + density[:-1]) / 2, 0)])
    total = total / total[-1]
    after = torch.searchsorted(total, share.double()).clamp(1, len(times) - 1)
    below, above = total[after - 1], total[after]
    part = (share.double() - below) / (above - below).clamp(min=1e-12)
    return (times[after - 1] + part * (times[after] - times[after - 1])).clamp(0, 1).float()


def shifted(share: Tensor, shift: float) -> Tensor:
    """Noise levels 0..1, shifted towards more noise by a shift above 1 (Esser et al. 2024)."""
    return shift * share / (1 + (shift - 1) * share)


def draw_steps(count: int, steps: int, draw: torch.Generator, options: TimestepOptions) -> Tensor:
    """(count,) timesteps of a diffusion model with `steps` timesteps: from `low` to below `high`, then shifted."""
    low, high = options.low, options.high or steps
    kind, shift = options.sampling or "uniform", options.shift or 1.0
    if isinstance(shift, str):
        raise StageError(f"timesteps.shift = {shift!r} is for flow matching models; use a number")
    if kind == "uniform" and shift == 1.0:
        return torch.randint(low, high, (count,), generator=draw)
    share = draw_shares(kind, count, draw, options).double().clamp(max=1 - 1e-9)
    return (shifted((low + share * (high - low)) / steps, shift) * steps).long().clamp(0, steps - 1)


@dataclass(frozen=True, eq=False)
class NoisyBatch:
    """A batch with noise, and its target.

    `noisy` and `target` are (batch, channels, height, width); `timesteps` (batch,) as the denoiser takes them;
    `weight` (batch,) is the weight of each example's loss at its timestep, `threshold` (batch,) where Huber's loss
    becomes linear, or None where the loss has no threshold. `base` is the prediction of the model without the LoRA,
    where the loss compares with it.
    """

    noisy: Tensor
    timesteps: Tensor
    target: Tensor
    weight: Tensor | None = None
    threshold: Tensor | None = None
    base: Tensor | None = None

    def to(self, device: torch.device, dtype: torch.dtype) -> NoisyBatch:
        """On a device, the noisy latents in the denoiser's dtype; the target stays float32."""
        rest = (None if one is None else one.to(device) for one in (self.weight, self.threshold))
        return NoisyBatch(self.noisy.to(device, dtype), self.timesteps.to(device), self.target.to(device), *rest)

    def cut(self, part: slice) -> NoisyBatch:
        """These examples of the batch."""
        rest = (None if one is None else one[part] for one in (self.weight, self.threshold))
        return NoisyBatch(self.noisy[part], self.timesteps[part], self.target[part], *rest)


def example_losses(
    prediction: Tensor, noisy_batch: NoisyBatch, options: ObjectiveOptions, mask: Tensor | None = None
) -> Tensor:
    """The loss of each example, (batch,) float32: the mean over its elements, weighted by its timestep.

    `mask` (batch, 1, height, width), 0 to 1, weights pixels as OneTrainer does: the mask is raised to
    `unmasked_weight` where it is lower, and with `normalize_mask` an image's loss is divided by its mean. With
    `masked_prior_weight` the rest of the image is compared with the prediction of the base model, as there too.
    """
    losses = _element_losses(prediction.float(), noisy_batch.target.float(), options.loss, noisy_batch.threshold)
    if mask is not None:
        raised = mask.to(losses).clamp(min=options.unmasked_weight, max=1.0)
        losses = _masked(losses, raised, options.normalize_mask)
        if options.masked_prior_weight and noisy_batch.base is not None:
            base = noisy_batch.base.float()
            prior = _element_losses(prediction.float(), base, options.loss, noisy_batch.threshold)
            losses = losses + options.masked_prior_weight * _masked(prior, 1 - raised, options.normalize_mask)
    means = losses.mean(dim=tuple(range(1, losses.ndim)))
    return means if noisy_batch.weight is None else means * noisy_batch.weight


def _masked(losses: Tensor, mask: Tensor, normalize: bool) -> Tensor:
    return losses * mask / (mask.mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-6) if normalize else 1.0)


def _element_losses(prediction: Tensor, target: Tensor, kind: str, threshold: Tensor | None) -> Tensor:
    """Squared, absolute, or kohya's pseudo-Huber loss 2c(√(d² + c²) - c), divided by c for `smooth_l1`."""
    difference = prediction - target
    if kind == "l2":
        return difference.square()
    if kind == "l1":
        return difference.abs()
    if threshold is None:
        raise ValueError(f"{kind} needs a threshold for each example")
    c = threshold.reshape(-1, *([1] * (difference.ndim - 1)))
    smooth = 2 * ((difference.square() + c.square()).sqrt() - c)
    return c * smooth if kind == "huber" else smooth


def mean_loss(
    losses: Tensor, weight: Tensor | None = None, prior: Tensor | None = None, prior_weight: float = 1.0
) -> Tensor:
    """The loss of a batch from (batch,) example losses with their `weight`.

    Where `prior` (batch,) marks examples of the class, the loss is DreamBooth's (Ruiz et al. 2023): the mean over the
    other examples plus `prior_weight` times the mean over these.
    """
    weighted = losses if weight is None else losses * weight.to(losses)
    if prior is None or not bool(prior.any()):
        return weighted.mean()
    of_class = prior.to(weighted.device)
    class_loss = prior_weight * weighted[of_class].mean()
    return class_loss if bool(of_class.all()) else weighted[~of_class].mean() + class_loss


def part_loss(losses: Tensor, full: FullBatch, prior_weight: float = 1.0) -> Tensor:
    """What some examples contribute to the `mean_loss` of a batch; the parts of all processes add up to it."""
    class_share = prior_weight / full.prior.sum().clamp(min=1)
    rest = 1 / (~full.prior).sum().clamp(min=1)
    shards = full.weight * torch.where(full.prior, class_share, rest)
    return (losses * shards[full.part].to(losses)).sum()


FIRST, LARGEST, SMALLEST = 128.0, 65536.0, 2.0**-10
GROW_AFTER = 500  # steps in a row without an overflow


@dataclass
class LossScale:
    """Loss scaling (Micikevicius et al. 2018): 1 except for float16 models.

    A step whose gradient overflows is repeated with half the scale; after `GROW_AFTER` good steps it doubles.
    """

    value: float = 1.0
    dynamic: bool = False
    good: int = 0
    overflows: int = 0

    def halve(self) -> bool:
        """Count an overflow. False when a smaller scale cannot help: the gradient is not finite for another reason."""
        if not self.dynamic or self.value <= SMALLEST:
            return False
        self.value, self.good = self.value / 2, 0
        self.overflows += 1
        return True

    def go_back(self, before: LossScale) -> None:
        """Undo the changes of a step that failed for another reason than the scale."""
        self.value, self.good, self.overflows = before.value, before.good, before.overflows

    def keep(self) -> None:
        """Count a good step."""
        self.good += 1
        if self.dynamic and self.good >= GROW_AFTER and self.value < LARGEST:
            self.value, self.good = self.value * 2, 0


def loss_scale(dtype: torch.dtype) -> LossScale:
    """The initial scale for a model of this dtype."""
    return LossScale(FIRST, True) if dtype == torch.float16 else LossScale()
