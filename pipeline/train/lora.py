"""LoRAs on the parts of a model through peft, and their tensors in the layout that programs read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import StageError
from ..models.offload import device_of
from ..recipe.options import LoraOptions
from ..recipe.typed import as_table

ADAPTER = "pivotune"
_ATTENTION = re.compile(r"(^|\.)(attn\d?|attention|self_attn|SelfAttention)\.")
_FORWARD = re.compile(
    r"\.\d+\.(.*\.)?(ff(_context|_i|_t)?|ffn|feed_forward|mlp|img_mlp|txt_mlp|DenseReluDense|channelwise)\."
    r"|single_transformer_blocks\.\d+\.proj_(mlp|out)$"
)
_BLOCK = re.compile(r"\.\d+\.")
# Modulation, the distilled network of Chroma that makes it, projections of captions, and the parts of a language model
# that only read images.
_NEVER = re.compile(
    r"(^|\.)(norm\w*|adaLN_modulation|(img|txt)_mod|distilled_guidance_layer|caption_projection|visual|vision_tower)\."
)
_OF_LORA = re.compile(r"\.(base_layer|lora_\w+)(\.|$)")  # inside a layer that has a LoRA already
TARGETS: dict[str, tuple[re.Pattern[str], ...]] = {
    "attention": (_ATTENTION,), "attention+feed-forward": (_ATTENTION, _FORWARD), "all": (_BLOCK,),
}  # fmt: skip


def all_layers(module: nn.Module) -> list[str]:
    """Names of all layers that a LoRA can be put on, or is on."""
    from peft.tuners.lora import LoraLayer

    return [
        name for name, one in module.named_modules()
        if not _OF_LORA.search(name)
        and (isinstance(one, nn.Linear | LoraLayer) or (isinstance(one, nn.Conv2d) and one.groups == 1))
    ]  # fmt: skip


def lora_layers(
    module: nn.Module, targets: str | Sequence[str], containing: Sequence[str] = (), excluding: Sequence[str] = ()
) -> list[str]:
    """Names of the layers that a LoRA is put on: `attention`, `attention+feed-forward`, `all` layers of the blocks, or
    those whose names end like one of the texts. Names of all model families follow a few patterns.

    Of these, names that contain one of the texts `containing`, if there are any, and none of `excluding`.
    """
    layers = [
        name for name in all_layers(module)
        if (not containing or any(text in name for text in containing)) and not any(text in name for text in excluding)
    ]  # fmt: skip
    if not isinstance(targets, str):
        return [name for name in layers if f".{name}".endswith(tuple(f".{ending}" for ending in targets))]
    patterns = TARGETS[targets]
    return [name for name in layers if any(one.search(name) for one in patterns) and not _NEVER.search(name)]


@dataclass(frozen=True, eq=False)
class LoraWeights:
    """The LoRA of one layer, float32 on the CPU: `up` @ `down` * `alpha` / rank is added to its weight.

    `down` is (rank, in) or (rank, in, height, width) of a convolution, `up` (out, rank) or (out, rank, 1, 1).
    """

    down: Tensor
    up: Tensor
    alpha: float


def add_lora(
    part: str, module: nn.Module, options: LoraOptions, seed: int, base: Mapping[str, LoraWeights] | None = None
) -> dict[str, nn.Parameter]:
    """Add a new LoRA to a part of the model and return its float32 parameters by name; outputs are unchanged.

    With `base`, by layer, it starts from these weights, and has their ranks and layers. The LoRA of an earlier stage
    continues training if it has the same shape. Raises StageError when `targets` match no layer, or the shapes differ.
    """
    from peft import inject_adapter_in_model

    present = getattr(module, "peft_config", {}).get(ADAPTER)
    config = _config(part, module, options, base)
    names = list(config.target_modules)
    if present is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inject_adapter_in_model(config, module, ADAPTER)
        if base is not None and _layers(module) != base.keys():
            raise StageError(f"lora.base: peft cannot put a LoRA on just the layers of {part} that the file has")
        for name, weights in (base or {}).items():
            _load_weights(module.get_submodule(name), weights)
    else:
        _same_shape(part, module, present, config, names)
    parameters = _parameters(module)
    for parameter in parameters.values():  # made where and in what the layer's weights rest
        parameter.data = parameter.data.to(device_of(module), torch.float32)
    _set_dropout(module, True)
    return parameters


def _config(part: str, module: nn.Module, options: LoraOptions, base: Mapping[str, LoraWeights] | None) -> Any:
    """PEFT's configuration of a LoRA; of one with a base, each layer has its own rank and alpha."""
    from peft import LoraConfig

    if base is not None:
        layers = {f"^{re.escape(name)}": weights for name, weights in base.items()}
        return LoraConfig(
            r=1, lora_alpha=1, lora_dropout=options.dropout, target_modules=list(base),
            rank_pattern={name: len(weights.down) for name, weights in layers.items()},
            alpha_pattern={name: weights.alpha for name, weights in layers.items()},
        )  # fmt: skip
    assert options.targets is not None
    names = lora_layers(module, options.targets, options.containing, options.excluding)
    if not names:
        filters = f" with containing = {list(options.containing)}" if options.containing else ""
        filters += f" and excluding = {list(options.excluding)}" if options.excluding else ""
        raise StageError(f"lora.targets = {as_table(options.targets)!r}{filters} match no layer of {part}")
    return LoraConfig(
        r=options.rank, lora_alpha=options.alpha, lora_dropout=options.dropout,
        use_dora=options.dora, target_modules=names,
    )  # fmt: skip


def _load_weights(layer: Any, weights: LoraWeights) -> None:
    for own, value in ((layer.lora_A[ADAPTER], weights.down), (layer.lora_B[ADAPTER], weights.up)):
        own.weight.data = own.weight.data.float()  # of a half-precision model peft makes it so
        own.weight.data.copy_(value)


def load_lora(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Add a trained LoRA to a part: tensors in PEFT's layout, `<layer>.lora_A.weight` and so on.

    For parts that diffusers has no loader for. `remove_lora` removes it. Names of CLIP's layers may have the level
    `text_model` that transformers 5 removed.
    """
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    if not hasattr(module, "text_model"):
        tensors = {name.removeprefix("text_model."): one for name, one in tensors.items()}
    ranks = {name.removesuffix(".lora_A.weight"): one.shape[0] for name, one in tensors.items() if ".lora_A." in name}
    config = LoraConfig(
        r=1, lora_alpha=1, target_modules=list(ranks), rank_pattern=ranks, alpha_pattern=ranks,
        use_dora=any("lora_magnitude_vector" in name for name in tensors),
    )  # fmt: skip
    inject_adapter_in_model(config, module, ADAPTER)
    result = set_peft_model_state_dict(module, dict(tensors), ADAPTER)
    for parameter in _parameters(module).values():
        parameter.data = parameter.data.to(device_of(module))
    if result.unexpected_keys:
        raise StageError(f"the LoRA has tensors for no layer of the model: {', '.join(result.unexpected_keys[:5])}")


def _same_shape(part: str, module: nn.Module, present: Any, wanted: Any, names: list[str]) -> None:
    """StageError when the LoRA of an earlier stage differs from the wanted one."""
    facts = [(one.r, float(one.lora_alpha), bool(one.use_dora)) for one in (present, wanted)]
    if facts[0] != facts[1]:
        rank, alpha, dora = facts[0]
        before = f"rank {rank} and alpha {alpha:g}" + (" as a DoRA" if dora else "")
        raise StageError(f"the LoRA of an earlier stage on {part} has {before}; use the same, or train in one stage")
    if _layers(module) != set(names):
        raise StageError(
            f"the LoRA of an earlier stage is on other layers of {part}; use the same targets, or train in one stage"
        )


def freeze_lora(module: nn.Module) -> None:
    """Freeze the LoRA of an earlier stage: it stays in the model and gets no gradient."""
    _set_dropout(module, False)
    for parameter in _parameters(module).values():
        parameter.requires_grad_(False)
        parameter.grad = None


def _set_dropout(module: nn.Module, on: bool) -> None:
    """Switch the LoRA's dropout on or off, as the model is never in training mode."""
    from peft.tuners.lora import LoraLayer

    for one in module.modules():
        if isinstance(one, LoraLayer) and ADAPTER in one.lora_dropout:
            one.lora_dropout[ADAPTER].train(on)


def _layers(module: nn.Module) -> set[str]:
    from peft.tuners.lora import LoraLayer

    return {name for name, one in module.named_modules() if isinstance(one, LoraLayer)}


def _parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in module.named_parameters() if f".{ADAPTER}." in f"{name}."}


def has_lora(module: nn.Module) -> bool:
    """Whether it has a LoRA of this run."""
    return ADAPTER in getattr(module, "peft_config", {})


def remove_lora(module: nn.Module) -> None:
    """Remove the LoRA, if there is one: the original layers are back."""
    if has_lora(module):
        for parent, name, layer in _lora_layers(module):
            setattr(parent, name, layer.get_base_layer())
        del module.peft_config


def _lora_layers(module: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """Every layer with a LoRA: its parent module, its name there, and the layer."""
    from peft.tuners.lora import LoraLayer

    return [
        (parent, name, layer)
        for parent in module.modules()
        for name, layer in parent.named_children()
        if isinstance(layer, LoraLayer)
    ]


@contextmanager
def without_lora(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within it the models have their original layers, without LoRAs."""
    models = [module for module in modules if has_lora(module)]
    layers = [one for model in models for one in _lora_layers(model)]
    configs = [(model, model.peft_config) for model in models]
    try:
        for parent, name, layer in layers:
            setattr(parent, name, layer.get_base_layer())
        for model in models:
            del model.peft_config
        yield
    finally:
        for parent, name, layer in layers:
            setattr(parent, name, layer)
        for model, config in configs:
            model.peft_config = config


def lora_tensors(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    """The LoRA of one part in kohya's layout, float32, CPU.

    `<prefix>_<module>.lora_down.weight`, `.lora_up.weight`, `.alpha`, and `.dora_scale` (out, 1, ...) for a DoRA. Such
    keys carry alpha, load in every program and in diffusers (whose own layout loses alpha on saving). Module names are
    diffusers' with underscores.
    """
    from peft.tuners.lora import LoraLayer

    tensors: dict[str, Tensor] = {}
    for name, one in module.named_modules():
        if not isinstance(one, LoraLayer) or ADAPTER not in one.lora_A:
            continue
        key = f"{prefix}_{name.removeprefix('text_model.').replace('.', '_')}"
        up = one.lora_B[ADAPTER].weight.detach().float().cpu()
        tensors[f"{key}.lora_down.weight"] = one.lora_A[ADAPTER].weight.detach().float().cpu()
        tensors[f"{key}.lora_up.weight"] = up
        tensors[f"{key}.alpha"] = torch.tensor(float(one.lora_alpha[ADAPTER]))
        if ADAPTER in one.lora_magnitude_vector:
            magnitude = one.lora_magnitude_vector[ADAPTER].weight.detach().float().cpu()
            tensors[f"{key}.dora_scale"] = magnitude.reshape(-1, *[1] * (up.ndim - 1))
    return tensors
