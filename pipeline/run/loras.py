"""A trained LoRA in a pipeline that draws: by the pipeline's own loader where it can, else part by part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, Protocol

import torch

from ...converters.families import Family
from ...converters.tensor import RawTensor
from ..errors import StageError
from ..export.lora_layouts import clip_modules, peft
from ..models.quantized import QuantizedLinear
from ..models.received import load_errors, one_line
from ..tensors import from_raw
from ..train.lora import ADAPTER, load_lora, remove_lora

Remove = Callable[[], None]


class Drawn(Protocol):
    """A pipeline and its family: a `Model`, or a pipeline that the user has loaded."""

    @property
    def pipe(self) -> Any: ...

    @property
    def family(self) -> Family: ...


def put_lora(model: Drawn, tensors: Mapping[str, RawTensor], adapter: str = ADAPTER) -> Remove:
    """Add a LoRA to the pipeline and return what removes it; other LoRAs of the pipeline stay as they are.

    `tensors` are in the layout of a run (kohya's, with diffusers' names of modules), or in any other that the
    pipeline's own loader knows. `adapter` is its name in the pipeline. StageError where neither fits the model.
    """
    if not _is_ours(tensors, model.family):
        return _by_pipeline(model, {name: from_raw(raw) for name, raw in tensors.items()}, adapter)
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, raw in peft(tensors, model.family, model.pipe).items():
        parts.setdefault(name.partition(".")[0], {})[name] = from_raw(raw)
    theirs = [name for name in parts if _pipeline_loads(model, name)]
    with ExitStack() as stack:
        if theirs:
            stack.callback(
                _by_pipeline(model, {key: one for name in theirs for key, one in parts[name].items()}, adapter)
            )
        for name in parts.keys() - theirs:
            part = getattr(model.pipe, name)
            if getattr(part, "peft_config", None):
                raise StageError(f"{name} already has a LoRA; unload it first")
            stack.callback(partial(remove_lora, part))
            load_lora(part, {key.removeprefix(f"{name}."): one for key, one in parts[name].items()})
        return stack.pop_all().close


def _is_ours(tensors: Mapping[str, RawTensor], family: Family) -> bool:
    """Whether all layers have the names that a run gives them, as far as names show it."""
    starts = tuple(f"{prefix}_" for prefix in family.lora_prefixes.values())
    kinds = ("lora_down.weight", "lora_up.weight", "alpha", "dora_scale")
    stability = ("input_blocks_", "middle_block_", "output_blocks_", "double_blocks_", "single_blocks_")
    return all(
        name.startswith(starts)
        and name.partition(".")[2] in kinds
        and not any(f"_{blocks}" in name for blocks in stability)
        for name in tensors
    )


def _by_pipeline(model: Drawn, tensors: dict[str, torch.Tensor], adapter: str) -> Remove:
    """As `put_lora`, by the pipeline's own loader, which understands several layouts."""
    pipe = model.pipe
    if not hasattr(pipe, "load_lora_weights"):
        raise StageError(f"{type(pipe).__name__} loads no LoRA; pass lora=False for the embeddings alone")
    before = _active(pipe)
    with load_errors(lambda error: StageError(f"the LoRA does not fit {type(pipe).__name__}: {one_line(error)}")):
        pipe.load_lora_weights(tensors, adapter_name=adapter)
    for layer, names in before.items():
        layer.set_adapter([*names, adapter] if adapter in layer.r else names)
    return partial(_unload, pipe, adapter)


def _unload(pipe: Any, adapter: str) -> None:
    """Remove one LoRA; with the last one, the original layers are back."""
    if {name for names in pipe.get_list_adapters().values() for name in names} <= {adapter}:
        pipe.unload_lora_weights()
        return
    before = _active(pipe)
    pipe.delete_adapters([adapter])
    for layer, names in before.items():
        layer.set_adapter([name for name in names if name != adapter])


def _active(pipe: Any) -> dict[Any, list[str]]:
    """The layers of a pipeline that have LoRAs, each with the names of those that it uses."""
    from peft.tuners.lora import LoraLayer

    parts = [part for name in pipe._lora_loadable_modules if (part := getattr(pipe, name, None)) is not None]
    layers = [layer for part in parts for layer in part.modules() if isinstance(layer, LoraLayer)]
    return {layer: list(layer.active_adapters) for layer in layers}


def _pipeline_loads(model: Drawn, part: str) -> bool:
    """Whether the pipeline loads LoRAs on this part; on T5 and Qwen3 loaders of diffusers fail or ignore them.

    They compare shapes of weights, which packed layers do not have, and add layers where the weights rest.
    """
    own = getattr(model.pipe, part)
    if hasattr(own, "offload") or any(isinstance(layer, QuantizedLinear) for layer in own.modules()):
        return False
    able = {model.family.denoiser_module, *clip_modules(model.family)}
    return part in able and part in getattr(model.pipe, "_lora_loadable_modules", ())
