"""A rough estimate whether model, trained weights and activations fit into the device's memory."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..export.lora_base import read_bases
from ..models.load import Model
from ..models.offload import blocks_of, offloaded
from ..models.quantized import number_format, packed_bytes, part_key
from ..recipe.model import ModelSpec, Recipe
from ..recipe.options import OptimizerOptions, TrainOptions
from ..tensors import DTYPES
from ..text import format_bytes
from ..train.setup import weight_trainers
from ..vae import latent_channels

VALUE = 4  # bytes of a float32


@dataclass(frozen=True)
class TrainedPart:
    """What one optimizer trains: its values, and the bytes of optimizer state and EMA weights.

    `copied`: the model's weights are 16-bit, so float32 copies are trained.
    """

    name: str
    values: int
    state: int
    copied: bool = False


@dataclass(frozen=True)
class StageNeeds:
    """One train stage by its index: what it trains, and values trained by earlier stages that are frozen in it."""

    stage: int
    trained: tuple[TrainedPart, ...]
    frozen: int

    @property
    def bytes(self) -> int:
        """Trained values in float32 with their state."""
        return sum(VALUE * one.values + one.state for one in self.trained)


@dataclass(frozen=True)
class Needs:
    """What a run needs. `embeddings` and `lora`: numbers of float32 values; `finetuned`: whether model weights train.
    `model_bytes`, `model_values`: of the loaded model; `channels`: of latents; `activations`: bytes per image of `edge`
    pixels for the backward pass of the denoiser (0: unknown); `offloaded`: bytes of the model that rest in host memory.
    """

    embeddings: int
    lora: int
    finetuned: bool
    model_bytes: int
    model_values: int
    channels: int
    activations: int
    edge: int
    stages: tuple[StageNeeds, ...]
    offloaded: int = 0


def count_needs(recipe: Recipe, model: Model, vectors: Mapping[str, Mapping[str, int]]) -> Needs:
    """Count with `model`, to which the recipe's LoRAs are added; `vectors`: number per embedding and text encoder.

    Raises StageError for a LoRA or fine-tune that matches no layer, an unknown part, or a missing optimizer library.
    """
    width = {encoder.key: encoder.table.shape[1] for encoder in model.encoders}
    embeddings = sum(count * width[key] for one in vectors.values() for key, count in one.items() if key in width)
    parts = {name: part for name, part in model.pipe.components.items() if hasattr(part, "parameters")}
    whole = sum(weight.numel() for part in parts.values() for weight in part.parameters())
    stored = {name: _stored(recipe.model, model, name, part) for name, part in parts.items()}
    away = sum(_away(recipe.model, model, name, part, stored[name]) for name, part in parts.items())
    stages: list[StageNeeds] = []
    before: dict[str, int] = {}
    for index, options in recipe.stages_with(TrainOptions):
        trained = _trained_parts(model, options, embeddings, recipe)
        now = {one.name: one.values for one in trained if one.name != "embeddings"}
        stages.append(StageNeeds(index, trained, sum(count for name, count in before.items() if name not in now)))
        before |= now
    lora = sum(count for name, count in before.items() if name.startswith("lora."))
    finetuned = any(name.startswith("finetune.") for name in before)
    family = model.family
    usual = getattr(model.denoiser.config, family.denoiser_width, None) == family.cross_attention
    activations = round(family.step_activations_mib * 2**20 * model.dtype.itemsize / 2) if usual else 0
    return Needs(
        embeddings, lora, finetuned, sum(stored.values()), whole, latent_channels(model.pipe.vae.config),
        activations, family.resolution, tuple(stages), away,
    )  # fmt: skip


def _stored(spec: ModelSpec, model: Model, name: str, part: nn.Module) -> int:
    """Bytes of a part's weights as they are loaded."""
    asked = number_format(spec, model.family, name)
    return packed_bytes(part, asked, DTYPES.get(asked or "", model.dtype))


def _away(spec: ModelSpec, model: Model, name: str, part: nn.Module, stored: int) -> int:
    """Bytes of a part that rest in host memory while it computes: its offloaded blocks, but for two."""
    share = spec.offload.get(part_key(model.family, name))
    if share is None:
        return 0
    sizes = [sum(weight.numel() for weight in block.parameters()) for block in blocks_of(part)]
    resting = [sizes[at] for at in offloaded(len(sizes), share)]
    values = sum(resting) - sum(sorted(resting)[-2:])
    return round(stored * values / max(1, sum(weight.numel() for weight in part.parameters())))


def _trained_parts(model: Model, options: TrainOptions, embeddings: int, recipe: Recipe) -> tuple[TrainedPart, ...]:
    ema = options.ema
    found = []
    if options.embeddings and recipe.trained:
        found.append(TrainedPart("embeddings", embeddings, _state(embeddings, options.optimizer, ema)))
    bases = read_bases(model, options.lora)
    for trainable in weight_trainers(model, options, recipe.seed, bases=bases):
        values = sum(master.numel() for master in trainable.masters.values())
        copied = any(trainable.masters[name] is not weight for name, weight in trainable.parameters.items())
        found.append(TrainedPart(trainable.name, values, _state(values, trainable.settings.optimizer, ema), copied))
    return tuple(found)


def _state(values: int, optimizer: OptimizerOptions, ema: float | None) -> int:
    row = optimizer.facts
    return round(values * (row.state_bytes + (0 if ema is None or row.averages_itself else VALUE)))


CHECKPOINTED = 0.15  # share of the activations with gradient_checkpointing
_LIMIT, _USED = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")


@dataclass(frozen=True)
class Memory:
    """Bytes on the device: `least` without and `most` with activations; `free` now, `total`.

    On the CPU all but the total include what this process uses already: Python and the libraries.
    """

    least: int
    most: int
    free: int
    total: int


def memory_of(recipe: Recipe, needs: Needs, device: torch.device, edge: int) -> Memory | None:
    """Memory of the largest train stage and of the device; None if the device does not report its memory."""
    available = device_memory(device)
    if available is None:
        return None
    used = _process() if device.type == "cpu" else 0
    free, total = available
    options = dict(recipe.stages_with(TrainOptions))
    model = needs.model_bytes - (needs.offloaded if device.type != "cpu" else 0)
    sums = [(model, model)]
    for stage in needs.stages:
        least = model + trained_bytes(stage)
        sums.append((least, least + _activations(options[stage.stage], needs, edge)))
    return Memory(used + max(least for least, _ in sums), used + max(most for _, most in sums), free + used, total)


def memory_problems(memory: Memory | None, device: torch.device) -> tuple[list[str], list[str]]:
    """An error if the minimum exceeds the device's total memory, a warning if the maximum exceeds its free memory."""
    if memory is None:
        return [], []
    where = "RAM" if device.type == "cpu" else f"memory of {device}"
    fix = (
        "model.dtype = 'bfloat16', model.weights = { denoiser = 'nf4' }, a smaller batch_size with "
        "gradient_accumulation, gradient_checkpointing = true"
    )
    if memory.least > memory.total:
        need = f"at least {format_bytes(memory.least)} needed before the first image"
        return [f"{where}: {need}, {format_bytes(memory.total)} in total; try {fix}"], []
    if memory.most > memory.free:
        need = f"a step needs up to {format_bytes(memory.most)}"
        return [], [f"{where}: {need}, {format_bytes(memory.free)} are free; try {fix}"]
    return [], []


def device_memory(device: torch.device) -> tuple[int, int] | None:
    """Free and total bytes of a device; None if unknown."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return int(free), int(total)
    if device.type == "xpu" and hasattr(torch.xpu, "mem_get_info"):
        free, total = torch.xpu.mem_get_info(device)
        return int(free), int(total)
    if device.type == "mps":
        total = int(torch.mps.recommended_max_memory())
        return total - int(torch.mps.driver_allocated_memory()), total
    return _machine()


def _machine() -> tuple[int, int]:
    """Free and total bytes of the machine with swap, or of the container."""
    import psutil

    memory = psutil.virtual_memory()
    free, total = int(memory.available), int(memory.total)
    with suppress(OSError, RuntimeError):  # a container may not report its swap
        swap = psutil.swap_memory()
        free, total = free + int(swap.free), total + int(swap.total)
    try:
        limit, used = int(_LIMIT.read_text("ascii")), int(_USED.read_text("ascii"))
    except (OSError, ValueError):  # no container, or no limit
        return free, total
    return min(free, limit - used), min(total, limit)


def _process() -> int:
    """Bytes of memory that this process uses now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def trained_bytes(stage: StageNeeds) -> int:
    """Bytes of a stage in addition to the model: float32 copies, gradients, optimizer state, EMA weights."""
    total = 0
    for one in stage.trained:
        own = one.name.startswith("finetune.")
        total += one.state + VALUE * one.values * (1 if own and not one.copied else 2)
        total += one.values * (2 if one.copied else 0)
    return total


def _activations(options: TrainOptions, needs: Needs, edge: int) -> int:
    """Bytes of activations of one step."""
    pixels = ((options.resolution or edge) / needs.edge) ** 2
    share = CHECKPOINTED if options.gradient_checkpointing else 1.0
    return round(needs.activations * options.batch_size * pixels * share)
