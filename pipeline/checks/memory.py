"""Whether model, trained values and activations fit into the memory of the device: a rough look."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from ..models.load import Model
from ..recipe.model import Recipe
from ..recipe.options import OptimizerOptions, TrainOptions
from ..text import format_bytes
from ..train.setup import weight_trainers

VALUE = 4  # bytes of a float32


@dataclass(frozen=True)
class Moved:
    """What one optimizer moves: so many values, with so many bytes of state and averages beside them.

    `copied` says that the model's own weights are half as long, so that float32 copies of them are moved.
    """

    name: str
    values: int
    state: int
    copied: bool = False


@dataclass(frozen=True)
class StageNeeds:
    """A train stage, by its place among the stages: what it moves, and weights that earlier stages have moved."""

    stage: int
    moved: tuple[Moved, ...]
    still: int

    @property
    def bytes(self) -> int:
        """Trained values in float32, with all that is kept beside them."""
        return sum(VALUE * one.values + one.state for one in self.moved)


@dataclass(frozen=True)
class Needs:
    """What a run trains. `embeddings` are the float32 values of all embeddings' vectors, `lora` those of the LoRA at
    the end; `tuned`: whether weights of the model are. `frozen` are the bytes of the model as it is loaded, `whole` its
    values, `channels` those of an encoded image, `activations` the bytes that the denoiser keeps of one image of `edge`
    pixels for the backward pass (0: nobody has counted).
    """

    embeddings: int
    lora: int
    tuned: bool
    frozen: int
    whole: int
    channels: int
    activations: int
    edge: int
    stages: tuple[StageNeeds, ...]


def count_needs(recipe: Recipe, model: Model, vectors: Mapping[str, Mapping[str, int]]) -> Needs:
    """Count on `model`, which gets the recipe's LoRAs; `vectors` has how many each embedding has, by encoder key.

    Raises StageError for what no stage could do: a LoRA or fine-tune that fits no layer, a part the model does not
    have, an optimizer whose library is not here.
    """
    width = {encoder.key: encoder.table.shape[1] for encoder in model.encoders}
    embeddings = sum(count * width[key] for one in vectors.values() for key, count in one.items() if key in width)
    whole = sum(weight.numel() for part in model.pipe.components.values() for weight in part.parameters())
    stages: list[StageNeeds] = []
    before: dict[str, int] = {}
    for index, options in recipe.stages_with(TrainOptions):
        moved = _moved(model, options, embeddings, recipe)
        now = {one.name: one.values for one in moved if one.name != "embeddings"}
        stages.append(StageNeeds(index, moved, sum(count for name, count in before.items() if name not in now)))
        before |= now
    lora = sum(count for name, count in before.items() if name.startswith("lora."))
    tuned = any(name.startswith("finetune.") for name in before)
    family = model.family
    usual = getattr(model.denoiser.config, family.denoiser_width, None) == family.cross_attention
    activations = round(family.step_activations_mib * 2**20 * model.dtype.itemsize / 2) if usual else 0
    return Needs(
        embeddings, lora, tuned, whole * model.dtype.itemsize, whole, int(model.pipe.vae.config.latent_channels),
        activations, family.resolution, tuple(stages),
    )  # fmt: skip


def _moved(model: Model, options: TrainOptions, embeddings: int, recipe: Recipe) -> tuple[Moved, ...]:
    ema = options.ema
    found = []
    if options.embeddings and recipe.trained:
        found.append(Moved("embeddings", embeddings, _state(embeddings, options.optimizer, ema)))
    for trainable in weight_trainers(model, options, recipe.seed):
        values = sum(master.numel() for master in trainable.masters.values())
        copied = any(trainable.masters[name] is not weight for name, weight in trainable.parameters.items())
        found.append(Moved(trainable.name, values, _state(values, trainable.settings.optimizer, ema), copied))
    return tuple(found)


def _state(values: int, optimizer: OptimizerOptions, ema: float | None) -> int:
    row = optimizer.facts
    return round(values * (row.state_bytes + (0 if ema is None or row.averages_itself else VALUE)))


CHECKPOINTED = 0.15  # of a step's activations, with gradient_checkpointing
_LIMIT, _USED = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")


@dataclass(frozen=True)
class Memory:
    """Bytes on the device: `least` for weights and what is trained, `most` with activations; `free` now, `total`."""

    least: int
    most: int
    free: int
    total: int


def memory_of(recipe: Recipe, needs: Needs, device: torch.device, edge: int) -> Memory | None:
    """What the hungriest train stage takes, and what the device has; None where the device does not tell."""
    there = device_memory(device)
    if there is None:
        return None
    options = dict(recipe.stages_with(TrainOptions))
    sums = [(needs.frozen, needs.frozen)]
    for stage in needs.stages:
        least = needs.frozen + _trained(stage)
        sums.append((least, least + _activations(options[stage.stage], needs, edge)))
    return Memory(max(least for least, _ in sums), max(most for _, most in sums), *there)


def memory_findings(memory: Memory | None, device: torch.device) -> tuple[list[str], list[str]]:
    """An error where even an empty device is too small for what is sure, a warning where it gets tight."""
    if memory is None:
        return [], []
    where = "this machine's memory" if device.type == "cpu" else f"the memory of {device}"
    less = "model.dtype = 'bfloat16', a smaller batch_size with gradient_accumulation, gradient_checkpointing = true"
    if memory.least > memory.total:
        return [f"{where} is {format_bytes(memory.total)}, and the model with what is trained takes {format_bytes(memory.least)} "
                f"before the first image; try {less}"], []  # fmt: skip
    if memory.most > memory.free:
        return [], [
            f"{format_bytes(memory.free)} of {where} are free, and a step may take {format_bytes(memory.most)}; try {less}"
        ]
    return [], []


def device_memory(device: torch.device) -> tuple[int, int] | None:
    """Free and total bytes of a device; None where nobody tells."""
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
    """Of the machine with its swap, or of the container that the process is in."""
    import psutil

    memory = psutil.virtual_memory()
    free, total = int(memory.available), int(memory.total)
    with suppress(OSError, RuntimeError):  # a container may not report its swap
        swap = psutil.swap_memory()
        free, total = free + int(swap.free), total + int(swap.total)
    try:
        limit, used = int(_LIMIT.read_text("ascii")), int(_USED.read_text("ascii"))
    except (OSError, ValueError):  # no container, or none with a limit
        return free, total
    return min(free, limit - used), min(total, limit)


def _trained(stage: StageNeeds) -> int:
    """What a stage keeps beside the model: float32 values where the model's are others, gradients, state, averages."""
    total = 0
    for one in stage.moved:
        own = one.name.startswith("finetune.")
        total += one.state + VALUE * one.values * (1 if own and not one.copied else 2)
        total += one.values * (2 if one.copied else 0)
    return total


def _activations(options: TrainOptions, needs: Needs, edge: int) -> int:
    """What a step keeps of its batch for the backward pass."""
    pixels = ((options.resolution or edge) / needs.edge) ** 2
    share = CHECKPOINTED if options.gradient_checkpointing else 1.0
    return round(needs.activations * options.batch_size * pixels * share)
