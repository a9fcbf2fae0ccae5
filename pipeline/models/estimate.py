"""How long training would take, roughly: the work of a step over the speed of this machine. No weights are loaded."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ...converters.families import Family
from ..recipe.model import ModelSpec, Recipe
from .device import DTYPES, device_name
from .family import MICRO
from .find import find_model
from .json_file import read_json
from .received import check_model_folder
from .unreadable import reading, unreadable

EFFICIENCY = (0.12, 0.7)  # share of the speed of large matrix products that training steps have reached
STARTS = (6000, 40000)  # a step's operations as so many small ones, which cost time however little they compute
FORWARD = 0.46  # one answer of the denoiser, as a share of a training step
LORA, LORA_STARTS = 1.01, 2.3
CHECKPOINTING = 1.36
_ENOUGH = 0.02  # seconds of one timing


@dataclass(frozen=True)
class Estimate:
    """Seconds between `low` and `high`, and what they rest on. Loading the model is not in them."""

    low: float
    high: float
    basis: str

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(self.low + other.low, self.high + other.high, other.basis)


def estimate_seconds(
    spec: ModelSpec,
    family: Family,
    *,
    steps: int,
    batch_size: int,
    resolution: int | None,
    lora: bool,
    checkpointing: bool,
    device: torch.device,
) -> Estimate:
    """Time of a train stage; `resolution` None is the model's own. Rough: `high` is some six times `low`."""
    own, work = _step(spec, family)
    pixels = ((resolution or own) / own) ** 2
    again = CHECKPOINTING if checkpointing else 1.0
    work *= batch_size * pixels * again * (LORA if lora else 1.0)
    return _seconds(steps, work, again * (LORA_STARTS if lora else 1.0), spec, device)


def estimate_recipe(recipe: Recipe, family: Family, device: torch.device) -> Estimate:
    """Time of all train stages of a recipe and of its pictures before and after."""
    samples = recipe.samples
    drawn = FORWARD * 2 * len(samples.prompts) * samples.count * samples.steps
    guided = 2 * _step(recipe.model, family)[1]  # each answer with and without the prompt
    total = _seconds(drawn, guided, 1.0, recipe.model, device)
    for stage in recipe.stages:
        if stage.kind == "train":
            options = stage.options
            total += estimate_seconds(
                recipe.model, family, steps=options["steps"], resolution=options["resolution"],
                batch_size=options["batch_size"] * options["gradient_accumulation"], lora=options["lora"] is not None,
                checkpointing=options["gradient_checkpointing"], device=device,
            )  # fmt: skip
    return total


def _seconds(steps: float, work: float, starts: float, spec: ModelSpec, device: torch.device) -> Estimate:
    dtype = DTYPES[spec.dtype]
    speed, start = measured_speed(device, dtype), measured_start(device) * starts
    low = max(work / speed / EFFICIENCY[1], STARTS[0] * start)
    high = work / speed / EFFICIENCY[0] + STARTS[1] * start
    basis = f"{_flops(work)} a step; {device_name(device)} does {_flops(speed)} a second in {spec.dtype}"
    return Estimate(steps * low, steps * high, basis)


def _flops(count: float) -> str:
    return f"{count / 1e12:.3g} TFLOP" if count >= 1e12 else f"{count / 1e9:.3g} GFLOP"


def _step(spec: ModelSpec, family: Family) -> tuple[int, float]:
    """Resolution of a model and the work of a step with one such picture: the family's, or counted for other sizes."""
    usual = family.resolution, family.step_tflops * 1e12
    folder = find_model(spec) if spec.base == MICRO or Path(spec.base).is_dir() else None
    if folder is None or not all((folder / part / "config.json").is_file() for part in ("unet", "vae")):
        return usual
    check_model_folder(folder)
    with reading(lambda error: unreadable(spec, error)):
        return _counted_step(folder, family, usual)


def _counted_step(folder: Path, family: Family, usual: tuple[int, float]) -> tuple[int, float]:
    config = read_json(folder / "unet" / "config.json")
    if config.get("cross_attention_dim") == family.cross_attention:
        return usual
    levels = len(read_json(folder / "vae" / "config.json")["block_out_channels"])
    return config["sample_size"] * 2 ** (levels - 1), _counted(json.dumps(config))


@cache
def _counted(config: str) -> float:
    return counted_work(json.loads(config))


def counted_work(config: dict[str, Any]) -> float:
    """Floating-point operations of one step of a UNet, words only, counted with shapes alone."""
    from diffusers import UNet2DConditionModel
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config).requires_grad_(False)
        about = unet.config
        states = torch.empty(1, 77, about.cross_attention_dim, requires_grad=True)
        added = {}
        if about.addition_embed_type == "text_time":
            pooled = about.projection_class_embeddings_input_dim - 6 * about.addition_time_embed_dim
            added = {"text_embeds": torch.empty(1, pooled, requires_grad=True), "time_ids": torch.empty(1, 6)}
        noisy = torch.empty(1, about.in_channels, about.sample_size, about.sample_size)
        with FlopCounterMode(display=False) as counter:
            unet(noisy, torch.empty(1), states, added_cond_kwargs=added, return_dict=False)[0].sum().backward()
    return float(counter.get_total_flops())


@cache
def measured_speed(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of large matrix products here, measured in a fraction of a second."""
    side, seconds = 128, 0.0
    while seconds < _ENOUGH and side < 8192:
        side *= 2
        left = torch.randn(side, side, device=device).to(dtype)
        seconds = min(_timed(lambda left=left: left @ left, device) for _ in range(2))  # type: ignore[misc]
    return float(2 * side**3 / seconds)


@cache
def measured_start(device: torch.device) -> float:
    """Seconds that one small operation with a gradient takes here, most of it the way to its kernel."""
    value = torch.ones(8, 8, device=device, requires_grad=True)

    def many() -> None:
        for _ in range(200):
            value * value

    return min(_timed(many, device) for _ in range(3)) / 200


def _timed(work: Callable[[], object], device: torch.device) -> float:
    synchronize = getattr(torch, device.type).synchronize
    synchronize()
    begin = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - begin
