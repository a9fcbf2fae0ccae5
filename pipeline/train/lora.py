"""A LoRA on the denoiser through peft, and its tensors in the layout the programs read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import StageError

ADAPTER = "pivotune"
TARGETS: dict[str, tuple[str, ...]] = {
    "attention": ("to_q", "to_k", "to_v", "to_out.0"),
    "attention+feed-forward": ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"),
    "all": ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out",
            "conv1", "conv2", "conv_shortcut", "conv", "time_emb_proj"),
}  # fmt: skip


def add_lora(denoiser: nn.Module, options: Mapping[str, Any], seed: int) -> dict[str, nn.Parameter]:
    """Put a fresh LoRA on the denoiser and return its float32 parameters by name; the model answers as before with it.

    A LoRA that an earlier stage left is trained on when it has the same shape. Raises StageError when no layer has a
    name that ends as `targets` says, or the shapes differ.
    """
    from peft import LoraConfig

    targets = options["targets"]
    endings: Sequence[str] = TARGETS[targets] if isinstance(targets, str) else targets
    ends = tuple(f".{ending}" for ending in endings)
    rank = int(options["rank"])
    alpha = float(options["alpha"] if options["alpha"] is not None else rank)
    present = getattr(denoiser, "peft_config", {}).get(ADAPTER)
    if present is None:
        config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=options["dropout"], target_modules=list(endings))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                denoiser.add_adapter(config, adapter_name=ADAPTER)  # type: ignore[operator]
            except ValueError as error:
                raise StageError(f"lora.targets = {targets!r}: {error}") from error
    elif (present.r, present.lora_alpha) != (rank, alpha):
        before = f"rank {present.r} and alpha {present.lora_alpha}"
        raise StageError(f"the LoRA of the stage before has {before}: keep both, or train in one stage")
    elif _layers(denoiser) != {name for name, _ in denoiser.named_modules() if f".{name}".endswith(ends)}:
        raise StageError("the LoRA of the stage before is on other layers: keep its targets, or train in one stage")
    parameters = _parameters(denoiser)
    for parameter in parameters.values():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    return parameters


def freeze_lora(denoiser: nn.Module) -> None:
    """Hold a LoRA of an earlier stage still: it is part of the model then, and collects no gradient."""
    for parameter in _parameters(denoiser).values():
        parameter.requires_grad_(False)
        parameter.grad = None


def _layers(denoiser: nn.Module) -> set[str]:
    from peft.tuners.lora import LoraLayer

    return {name for name, module in denoiser.named_modules() if isinstance(module, LoraLayer)}


def _parameters(denoiser: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in denoiser.named_parameters() if f".{ADAPTER}." in name}


def has_lora(denoiser: nn.Module) -> bool:
    """Whether a LoRA of this run is on it."""
    return ADAPTER in getattr(denoiser, "peft_config", {})


def remove_lora(denoiser: nn.Module) -> None:
    """Take the LoRA off again, if there is one: the layers are the original ones, in their places."""
    if has_lora(denoiser):
        denoiser.unload_lora()  # type: ignore[operator]


def lora_tensors(denoiser: nn.Module, prefix: str) -> dict[str, Tensor]:
    """The LoRA in kohya's layout, float32, CPU: `<prefix>_<module>.lora_down.weight`, `.lora_up.weight`, `.alpha`.

    kohya's keys carry alpha, load in every program and in diffusers (whose own layout loses alpha on saving). Module
    names are diffusers' with underscores.
    """
    from peft.tuners.lora import LoraLayer

    tensors: dict[str, Tensor] = {}
    for name, module in denoiser.named_modules():
        if not isinstance(module, LoraLayer) or ADAPTER not in module.lora_A:
            continue
        key = f"{prefix}_{name.replace('.', '_')}"
        tensors[f"{key}.lora_down.weight"] = module.lora_A[ADAPTER].weight.detach().float().cpu()
        tensors[f"{key}.lora_up.weight"] = module.lora_B[ADAPTER].weight.detach().float().cpu()
        tensors[f"{key}.alpha"] = torch.tensor(float(module.lora_alpha[ADAPTER]))
    return tensors
