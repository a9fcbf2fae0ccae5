"""Trains weights: those of a LoRA, or of the model itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import StageError
from ..recipe.intervals import Clock
from ..recipe.options import OptimizerOptions
from ..recipe.typed import as_table
from .ema import Average, EmaSwitch
from .fsdp import FsdpPart, full_tensor, gather_state
from .guard import Guard
from .lora import has_lora
from .optimizers import AverageSwap, effective_learning_rate, load_state, make_optimizer, set_learning_rate
from .packing import copy_into, pack, unpack
from .trainable import State

LAYERS: dict[str, tuple[str, ...]] = {
    "all": ("",),
    "attention": (".attn", "self_attn", "SelfAttention"),
    "cross-attention": (".attn2.",),
}


def weights_to_finetune(part: str, module: nn.Module, layers: str | Sequence[str]) -> dict[str, nn.Parameter]:
    """The weights of a part by name that match `layers`, without an encoder's vocabulary.

    Raises StageError when there are none, or the part has a LoRA: its file would not fit the fine-tuned weights.
    """
    if has_lora(module):
        raise StageError(f"{part} has a LoRA and cannot be fine-tuned with it; fine-tune it in a stage before the LoRA")
    texts = LAYERS[layers] if isinstance(layers, str) else tuple(layers)
    vocabulary = {id(parameter) for parameter in _vocabulary(module)}
    chosen = {
        name: parameter
        for name, parameter in module.named_parameters()
        if id(parameter) not in vocabulary and any(text in f".{name}" for text in texts)
    }
    if not chosen:
        known = ", ".join(dict.fromkeys(name.split(".")[0] for name, _ in module.named_parameters()))
        raise StageError(
            f"finetune.layers = {as_table(layers)!r} matches no weight of {part}; names start with {known}"
        )
    return chosen


def _vocabulary(module: nn.Module) -> list[nn.Parameter]:
    """The token table of an encoder, which a run never changes."""
    table = getattr(module, "get_input_embeddings", None)
    if table is None:
        return []
    try:
        return list(table().parameters())
    except NotImplementedError:  # a denoiser has none
        return []


@dataclass(frozen=True, eq=False)
class WeightSettings:
    """Optimizer, learning rate, schedule factor per step, clipping, and EMA decay."""

    optimizer: OptimizerOptions
    learning_rate: float
    factor: Callable[[int], float] = lambda step: 1.0
    clip_norm: float = 1.0
    ema: float | None = None


class WeightTrainer:
    """Weights with an optimizer of their own, with its learning rate and clipping.

    Weights of a half-precision model have float32 masters, which are rounded into the model after each step: steps
    that half precision cannot represent accumulate in the masters, for every optimizer. With `fsdp` its shards of the
    weights are trained.
    """

    def __init__(
        self, name: str, parameters: Mapping[str, torch.nn.Parameter], settings: WeightSettings, *, text: bool,
        fsdp: FsdpPart | None = None,
    ) -> None:  # fmt: skip
        """`text`: the weights are a text encoder's, so the step needs a gradient through it."""
        self.name, self.parameters, self.settings = name, dict(parameters), settings
        self.trains_text, self.fsdp = text, fsdp
        self.trained = self.parameters if fsdp is None else fsdp.weights
        self.masters = {key: _master(parameter) for key, parameter in self.trained.items()}
        self.optimizer = make_optimizer(list(self.masters.values()), settings.optimizer, settings.learning_rate)
        self._swap = AverageSwap(self.optimizer) if settings.optimizer.facts.averages_itself else None
        self.averages = _averages(self.masters, settings.ema) if self._swap is None else {}
        self._switch = EmaSwitch(self._exchange)
        for parameter in self.trained.values():
            parameter.requires_grad_(True)
            parameter.grad = None

    @property
    def kind(self) -> str:
        """`lora` or `finetune`."""
        return self.name.partition(".")[0]

    @property
    def sharded(self) -> bool:
        return self.fsdp is not None

    def leaves(self) -> Sequence[Tensor]:
        return tuple(self.parameters.values()) if self.fsdp is None else ()  # FSDP has summed those of its shards

    def gradient_norm(self, scale: float) -> float:
        """Norm of the gradient divided by `scale`; moves the gradient to the masters."""
        gradients = []
        for key, parameter in self.trained.items():
            if parameter.grad is None:
                continue
            gradient = parameter.grad.float()
            if scale != 1.0:
                gradient = gradient / scale
            if self.masters[key] is not parameter:
                parameter.grad = None
            self.masters[key].grad = gradient
            gradients.append(gradient)
        return float(full_tensor(torch.nn.utils.get_total_norm(gradients))) if gradients else 0.0

    def step(self, norm: float, clock: Clock, guard: Guard | None = None) -> None:
        """One optimizer step, with the gradient clipped to `clip_norm`."""
        if self.settings.clip_norm:
            torch.nn.utils.clip_grads_with_norm_(
                self.masters.values(), self.settings.clip_norm, torch.tensor(norm, dtype=torch.float32)
            )
        set_learning_rate(self.optimizer, self.settings.learning_rate * self.settings.factor(clock.step))
        self.optimizer.step()
        self.clear()
        for average in self.averages.values():
            average.update()
        self._write_back()
        if guard is not None:
            guard.check_learning_rate(self.name, *self.learning_rate_and_factor())

    def clear(self) -> None:
        for tensor in (*self.trained.values(), *self.masters.values()):
            tensor.grad = None

    def learning_rates(self) -> dict[str, float]:
        return {self.name: effective_learning_rate(self.optimizer)}

    def learning_rate_and_factor(self) -> tuple[float, float | None]:
        """The learning rate of the last step, and Prodigy's `d` that is in it; None for other optimizers."""
        found = [float(group["d"]) for group in self.optimizer.param_groups if "d" in group]
        return effective_learning_rate(self.optimizer), max(found, default=None)

    def state(self) -> State:
        averages = {key: average.state() for key, average in self.averages.items()}
        state = pack({"weights": self.masters, "optimizer": self.optimizer.state_dict(), "averages": averages})
        return state if self.fsdp is None else gather_state(state, self.fsdp.main)

    def restore(self, state: State) -> None:
        tree = unpack(state)
        if tree["weights"].keys() != self.masters.keys() or tree["averages"].keys() != self.averages.keys():
            raise StageError(f"the checkpoint's {self.name} has other weights than the recipe trains")
        for key, values in tree["weights"].items():
            copy_into(self.masters[key], values, f"{self.name}: {key}")
        for key, average in self.averages.items():
            average.restore(tree["averages"][key])
        load_state(self.optimizer, tree["optimizer"])
        self._write_back()

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor], averages: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Start from these values of its weights, in the same shapes, with new optimizer state.

        EMA weights start from `averages`, else from the weight's value.
        """
        for key, values in weights.items():
            copy_into(self.masters[key], values, f"{self.name}: {key}")
            if key in self.averages:
                self.averages[key].restore(averages.get(key, {"shadow": values, "counts": torch.zeros(1)}))
        self._write_back()

    @contextmanager
    def ema_swapped(self) -> Iterator[None]:
        """Within it the model has the weights that are exported: EMA weights, if any, else the trained ones."""
        with self._switch.on(), nullcontext() if self.fsdp is None else self.fsdp.in_pipeline():
            yield

    def finish(self) -> None:
        """End the training: the model keeps the weights that are exported, frozen."""
        self._switch.set(True)
        if self._swap is not None:
            self._swap.settle()
        self.averages = {}
        if self.fsdp is not None:
            self.fsdp.restore()
        for parameter in self.parameters.values():
            parameter.requires_grad_(False)
            parameter.grad = None

    def _exchange(self, use: bool) -> None:
        if self._swap is not None:
            self._swap.use_average(use)
        for average in self.averages.values():
            average.swap()
        self._write_back()

    @torch.no_grad()
    def _write_back(self) -> None:
        for key, parameter in self.trained.items():
            if self.masters[key] is not parameter:
                parameter.copy_(self.masters[key])


def _master(parameter: torch.nn.Parameter) -> Tensor:
    if parameter.dtype == torch.float32:
        return parameter
    return parameter.detach().float().requires_grad_(True)


def _averages(masters: Mapping[str, Tensor], decay: float | None) -> dict[str, Average]:
    return {} if decay is None else {key: Average(master, decay) for key, master in masters.items()}
