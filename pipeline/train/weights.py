"""Training the weights of a model: those of a LoRA, or its own."""

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
from .ema import Average, Shown
from .fsdp import FsdpPart, gathered, whole
from .guard import Guard
from .lora import has_lora
from .optimizers import Turns, effective_rate, load_state, make_optimizer, set_rate
from .packing import copy_into, pack, unpack
from .trainable import State

LAYERS: dict[str, tuple[str, ...]] = {
    "all": ("",),
    "attention": (".attn", "self_attn", "SelfAttention"),
    "cross-attention": (".attn2.",),
}


def weights_to_tune(part: str, module: nn.Module, layers: str | Sequence[str]) -> dict[str, nn.Parameter]:
    """The weights of a part by name, but for an encoder's vocabulary, whose names hold what `layers` asks for.

    Raises StageError when there are none, or a LoRA lies on the part: its file would not fit the tuned weights.
    """
    if has_lora(module):
        raise StageError(f"{part} has a LoRA and cannot be fine-tuned under it: tune it in a stage before the LoRA")
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
            f"finetune.layers = {as_table(layers)!r} fits no weight of {part}; its names begin with {known}"
        )
    return chosen


def _vocabulary(module: nn.Module) -> list[nn.Parameter]:
    """The table of an encoder's tokens: what a run never changes."""
    table = getattr(module, "get_input_embeddings", None)
    if table is None:
        return []
    try:
        return list(table().parameters())
    except NotImplementedError:  # a denoiser has none
        return []


@dataclass(frozen=True, eq=False)
class WeightSettings:
    """How weights are moved: optimizer, rate, its factor a step, clipping, and the decay of an average of them."""

    optimizer: OptimizerOptions
    learning_rate: float
    factor: Callable[[int], float] = lambda step: 1.0
    clip_norm: float = 1.0
    ema: float | None = None


class WeightTrainer:
    """Weights with an optimizer of their own, so that its step size and clipping are nobody else's.

    Weights of a half-precision model are moved in a float32 copy and rounded into the model after each step: a step
    that is smaller than half precision can hold adds up in the copy instead of being lost, for every optimizer alike.
    With a `twin` its shards of them are moved.
    """

    def __init__(
        self, name: str, parameters: Mapping[str, torch.nn.Parameter], settings: WeightSettings, *, text: bool,
        twin: FsdpPart | None = None,
    ) -> None:  # fmt: skip
        """`text` says that the weights are a text encoder's, which needs a gradient through it."""
        self.name, self.parameters, self.settings = name, dict(parameters), settings
        self.trains_text, self.twin = text, twin
        self.moved = self.parameters if twin is None else twin.weights
        self.masters = {key: _master(parameter) for key, parameter in self.moved.items()}
        self.optimizer = make_optimizer(list(self.masters.values()), settings.optimizer, settings.learning_rate)
        self._turns = Turns(self.optimizer) if settings.optimizer.facts.averages_itself else None
        self.averages = _averages(self.masters, settings.ema) if self._turns is None else {}
        self._shown = Shown(self._exchange)
        for parameter in self.moved.values():
            parameter.requires_grad_(True)
            parameter.grad = None

    @property
    def kind(self) -> str:
        """`lora` or `finetune`."""
        return self.name.partition(".")[0]

    @property
    def sharded(self) -> bool:
        return self.twin is not None

    def leaves(self) -> Sequence[Tensor]:
        return tuple(self.parameters.values()) if self.twin is None else ()  # a twin has added its own up

    def gradient_norm(self, scale: float) -> float:
        """Norm of the gradient divided by `scale`; the float32 copies hold it now."""
        gradients = []
        for key, parameter in self.moved.items():
            if parameter.grad is None:
                continue
            gradient = parameter.grad.float()
            if scale != 1.0:
                gradient = gradient / scale
            if self.masters[key] is not parameter:
                parameter.grad = None
            self.masters[key].grad = gradient
            gradients.append(gradient)
        return float(whole(torch.nn.utils.get_total_norm(gradients))) if gradients else 0.0

    def step(self, norm: float, clock: Clock, guard: Guard | None = None) -> None:
        """Move the weights, at most `clip_norm` of the gradient's norm."""
        if self.settings.clip_norm:
            torch.nn.utils.clip_grads_with_norm_(
                self.masters.values(), self.settings.clip_norm, torch.tensor(norm, dtype=torch.float32)
            )
        set_rate(self.optimizer, self.settings.learning_rate * self.settings.factor(clock.step))
        self.optimizer.step()
        self.clear()
        for average in self.averages.values():
            average.update()
        self._round()
        if guard is not None:
            guard.step_size(self.name, *self.step_size())

    def clear(self) -> None:
        for tensor in (*self.moved.values(), *self.masters.values()):
            tensor.grad = None

    def learning_rates(self) -> dict[str, float]:
        return {self.name: effective_rate(self.optimizer)}

    def step_size(self) -> tuple[float, float | None]:
        """The step size of the last step, and the multiple of the learning rate that Prodigy has found."""
        found = [float(group["d"]) for group in self.optimizer.param_groups if "d" in group]
        return effective_rate(self.optimizer), max(found, default=None)

    def state(self) -> State:
        averages = {key: average.state() for key, average in self.averages.items()}
        state = pack({"weights": self.masters, "optimizer": self.optimizer.state_dict(), "averages": averages})
        return state if self.twin is None else gathered(state, self.twin.main)

    def restore(self, state: State) -> None:
        tree = unpack(state)
        if tree["weights"].keys() != self.masters.keys() or tree["averages"].keys() != self.averages.keys():
            raise StageError(f"the checkpoint's {self.name} has other weights than the recipe asks for")
        for key, values in tree["weights"].items():
            copy_into(self.masters[key], values, f"{self.name}: {key}")
        for key, average in self.averages.items():
            average.restore(tree["averages"][key])
        load_state(self.optimizer, tree["optimizer"])
        self._round()

    @torch.no_grad()
    def take(self, weights: Mapping[str, Tensor], averages: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Begin with these values of weights it has, in the same shapes; the optimizer begins anew.

        An average goes on as it is among the `averages`, else from the weight's value.
        """
        for key, values in weights.items():
            copy_into(self.masters[key], values, f"{self.name}: {key}")
            if key in self.averages:
                self.averages[key].restore(averages.get(key, {"shadow": values, "counts": torch.zeros(1)}))
        self._round()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model has the weights that are to be used: the average where one is kept, else the present ones."""
        with self._shown.shown(), nullcontext() if self.twin is None else self.twin.shown():
            yield

    def finish(self) -> None:
        """The weights that are to be used stay, and stand still from now on."""
        self._shown.show(True)
        if self._turns is not None:
            self._turns.settle()
        self.averages = {}
        if self.twin is not None:
            self.twin.end()
        for parameter in self.parameters.values():
            parameter.requires_grad_(False)
            parameter.grad = None

    def _exchange(self, use: bool) -> None:
        if self._turns is not None:
            self._turns.show(use)
        for average in self.averages.values():
            average.swap()
        self._round()

    @torch.no_grad()
    def _round(self) -> None:
        for key, parameter in self.moved.items():
            if self.masters[key] is not parameter:
                parameter.copy_(self.masters[key])


def _master(parameter: torch.nn.Parameter) -> Tensor:
    if parameter.dtype == torch.float32:
        return parameter
    return parameter.detach().float().requires_grad_(True)


def _averages(masters: Mapping[str, Tensor], decay: float | None) -> dict[str, Average]:
    return {} if decay is None else {key: Average(master, decay) for key, master in masters.items()}
