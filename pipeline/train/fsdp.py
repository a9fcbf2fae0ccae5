"""Fine-tuned parts that FSDP2 shards over the processes, and their tensors (torch's DTensor)."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import StageError
from .trainable import State


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor gathered from all processes, which must call this together; unchanged if it is not sharded."""
    gathered = getattr(tensor, "full_tensor", None)
    return tensor if gathered is None else gathered()


def sharded_like(values: Tensor, target: Tensor) -> Tensor:
    """Full values sharded like `target`: this process's shard of them. Nothing is sent."""
    if not hasattr(target, "placements"):
        return values
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(target, DTensor) or isinstance(values, DTensor) or values.shape != target.shape:
        return values
    values = values.to(target.device, target.dtype)
    return distribute_tensor(values, target.device_mesh, target.placements, src_data_rank=None)


def gather_state(state: State, main: bool) -> State:
    """A state with full tensors on the CPU, gathered one by one, in the main process; empty in the others."""
    tensors = {}
    for name, tensor in state.tensors.items():
        values = full_tensor(tensor)
        if main:
            tensors[name] = values.cpu()
    return State(tensors, state.values) if main else State()


CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)  # have no forward of their own for FSDP's hooks


class FsdpPart:
    """The sharded copy of one part, which replaces it in the pipeline."""

    def __init__(self, pipe: Any, name: str, trainable: Collection[str], *, main: bool) -> None:
        """`name` is the part's in the pipeline, `trainable` names the parameters that are fine-tuned.

        Raises StageError where the launcher's configuration does not fit the part.
        """
        self.pipe, self.name, self.main = pipe, name, main
        self._within = False
        self.part: nn.Module = getattr(pipe, name)
        self.device = next(self.part.parameters()).device
        vocabulary = _vocabulary(self.part)
        self.part.to("cpu")
        shared = {} if vocabulary is None else {id(vocabulary): vocabulary.to(self.device)}
        self.copy = copy.deepcopy(self.part, shared)
        for key, parameter in self.copy.named_parameters():
            parameter.requires_grad_(key in trainable)
        _shard(self.copy, self.device, set() if vocabulary is None else set(vocabulary.parameters()))
        weights = dict(self.copy.named_parameters())
        self.weights: dict[str, nn.Parameter] = {key: weights[key] for key in trainable}
        setattr(pipe, name, self.copy)

    def gather(self, *, everywhere: bool) -> None:
        """Copy the trained weights into the original part, in the main process or in all; all must call it."""
        there = dict(self.part.named_parameters())
        with torch.no_grad():
            for key, weight in self.weights.items():
                values = full_tensor(weight.detach())
                if everywhere or self.main:
                    there[key].copy_(values)

    @contextmanager
    def in_pipeline(self) -> Iterator[None]:
        """Within it the main process has the full part with its present weights in the pipeline; all must call it."""
        if self._within:
            yield
            return
        self.gather(everywhere=False)
        self._within = True
        if self.main:
            self._put(self.part.to(self.device))
        try:
            yield
        finally:
            self._within = False
            if self.main:
                self._put(self.copy)
                self._to_cpu()

    def restore(self) -> None:
        """Put the full part with its trained weights back into the pipeline, in every process."""
        self.gather(everywhere=True)
        self._put(self.part.to(self.device))

    def discard(self) -> None:
        """Put the part back untrained: after a failure the other processes cannot be asked for their shards."""
        self._put(self.part.to(self.device))

    def _put(self, module: nn.Module) -> None:
        setattr(self.pipe, self.name, module)

    def _to_cpu(self) -> None:
        vocabulary = _vocabulary(self.part)
        self.part.to("cpu")
        if vocabulary is not None:
            vocabulary.to(self.device)


def _shard(module: nn.Module, device: torch.device, ignored: set[nn.Parameter]) -> None:
    """FSDP2 over a module and those of its layers that the launcher's wrapping policy chooses.

    Gradients are summed over the processes in float32, as everywhere: they are parts of one batch's gradient.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    layers, reshard = _settings(module)
    options: Mapping[str, Any] = {
        "mesh": init_device_mesh(device.type, (torch.distributed.get_world_size(),)),
        "mp_policy": MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False),
        "ignored_params": ignored,
    }
    kinds = {one: type(one) for one in (*layers, module)}
    for layer in reversed(layers):  # the inner ones first
        fully_shard(layer, **options, reshard_after_forward=reshard)
    fully_shard(module, **options)
    for one, kind in kinds.items():  # transformers looks up by the class's name how to record hidden states
        type(one).__module__, type(one).__qualname__ = kind.__module__, kind.__qualname__
    for one in module.modules():
        if isinstance(one, FSDPModule):
            one.set_gradient_divide_factor(1.0)
            one.set_force_sum_reduction_for_comms(True)


def _settings(module: nn.Module) -> tuple[list[nn.Module], bool]:
    """The launcher's settings: the layers that are gathered one by one, and whether they are freed after the forward.

    Layer classes that it names, or else the model's library, may be those of another part of the pipeline.
    """
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.dataclasses import get_module_class_from_name
    from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy

    try:
        plugin = FullyShardedDataParallelPlugin()
    except ValueError as error:
        raise StageError(f"the launcher's FSDP settings: {error}") from error
    names = plugin.transformer_cls_names_to_wrap or getattr(module, "_no_split_modules", None) or ()
    plugin.transformer_cls_names_to_wrap = [one for one in names if get_module_class_from_name(module, one)]
    wanted = fsdp2_prepare_auto_wrap_policy(plugin, module)
    inner = [one for one in module.modules() if one is not module and not isinstance(one, CONTAINERS)]
    return [one for one in inner if wanted is not None and wanted(one)], bool(plugin.reshard_after_forward)


def _vocabulary(module: nn.Module) -> nn.Module | None:
    """The token table of a text encoder, with the embeddings in it. It is never fine-tuned, and prompts need all of
    it."""
    table = getattr(module, "get_input_embeddings", None)
    try:
        return table() if table is not None else None
    except NotImplementedError:  # a denoiser has none
        return None
