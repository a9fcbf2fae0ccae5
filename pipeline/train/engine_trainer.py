"""Training weights of the model with DeepSpeed's engine; a checkpoint is what one process would have written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import StageError
from .clock import Clock
from .engine import Engine, Place
from .optimizers import make_optimizer, set_rate
from .packing import copied, pack, unpack
from .trained import State
from .weights import WeightSettings, WeightTrainer


class EngineTrainer(WeightTrainer):
    """Weights of which this process moves its piece: what is kept of them (`masters`, `averages`) is one flat tensor.

    A weight that gets no gradient at all is moved by weight decay, of which the engine knows no exception: `remarks`
    says how many there are.
    """

    twin: Engine

    def __init__(
        self, name: str, parameters: Mapping[str, nn.Parameter], settings: WeightSettings, place: Place, *, text: bool
    ) -> None:
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        optimizer = make_optimizer(list(parameters.values()), settings.optimizer, settings.learning_rate)
        engine = Engine(place, parameters, optimizer, settings.clip_norm or 0.0)
        super().__init__(name, parameters, settings, text=text, twin=engine)

    def _optimizer(self) -> torch.optim.Optimizer:
        return self.twin.optimizer

    def before_backward(self, *, last: bool) -> None:
        self.twin.engine.set_gradient_accumulation_boundary(last)

    def gradient_norm(self, scale: float) -> float:
        """Norm of the gradient; `scale` is 1, for a float16 model is refused."""
        return self.twin.norm()

    def step(self, norm: float, clock: Clock) -> None:
        set_rate(self.optimizer, self.settings.learning_rate * self.settings.factor(clock.step))
        self.twin.step()
        for average in self.averages.values():
            average.update()

    def clear(self) -> None:
        self.twin.clear()

    def remarks(self) -> Sequence[str]:
        unreached, group = sorted(self.twin.unreached), self.optimizer.param_groups[0]
        if not unreached or not group["weight_decay"]:
            return ()
        return (
            f"{self.name}: no gradient reaches {len(unreached)} of its {len(self.parameters)} weights, {unreached[0]} "
            "among them; DeepSpeed moves them by weight decay alone, which one process would not (weight_decay = 0 "
            "leaves them as they are)",
        )  # fmt: skip

    def state(self) -> State:
        flat, keys = self.twin.flat, list(self.parameters)
        kept = self.optimizer.state.get(flat, {})
        moments = {name: self.twin.whole(value) for name, value in kept.items() if _like(value, flat)}
        weights = self.twin.whole(flat)
        averages = [(self.twin.whole(one.shadow), one.counts) for one in self.averages.values()]
        if not self.twin.main:
            return State()
        states = [{name: moments[name][key] if name in moments else kept[name] for name in kept} for key in keys]
        groups = [{**group, "params": list(range(len(keys)))} for group in self.optimizer.state_dict()["param_groups"]]
        optimizer = {"state": dict(enumerate(states)) if kept else {}, "param_groups": groups}
        averaged = {key: {"shadow": shadow[key], "counts": counts} for shadow, counts in averages for key in keys}
        tree = {"weights": weights, "optimizer": optimizer, "averages": averaged}
        return pack(tree, copy=lambda one: copied(one) if one.numel() == 1 else one)  # what was gathered is a copy

    def restore(self, state: State) -> None:
        tree = unpack(state)
        averaged = self.parameters.keys() if self.averages else {}.keys()
        if tree["weights"].keys() != self.parameters.keys() or tree["averages"].keys() != averaged:
            raise StageError(f"the checkpoint's {self.name} has other weights than the recipe asks for")
        for average in self.averages.values():
            self.twin.fill(average.shadow, {key: one["shadow"] for key, one in tree["averages"].items()})
            average.counts.copy_(next(iter(tree["averages"].values()))["counts"])
        self._restore_optimizer(tree["optimizer"]["state"], tree["optimizer"]["param_groups"][0])
        self.twin.fill(self.twin.flat, tree["weights"])
        self._round()

    def _restore_optimizer(self, states: Mapping[int, Mapping[str, Any]], group: Mapping[str, Any]) -> None:
        keys, flat = list(self.parameters), self.twin.flat
        self.optimizer.param_groups[0].update({name: value for name, value in group.items() if name != "params"})
        found: dict[str, Any] = {}
        for name, first in next(iter(states.values()), {}).items():
            found[name] = first.to(flat.device) if group.get("fused") else first
            if _like(first, self.parameters[keys[next(iter(states))]]):
                found[name] = torch.zeros_like(flat)
                self.twin.fill(found[name], {keys[number]: kept[name] for number, kept in states.items()})
        self.optimizer.state[flat] = found

    def take(self, weights: Mapping[str, Tensor], averages: Mapping[str, Mapping[str, Tensor]]) -> None:
        """As `WeightTrainer.take`. An average counts its steps anew unless it goes on in every weight."""
        self.twin.fill(self.twin.flat, weights)
        for average in self.averages.values():
            shadows = {key: averages.get(key, {"shadow": values})["shadow"] for key, values in weights.items()}
            self.twin.fill(average.shadow, shadows)
            whole = self.parameters.keys() <= averages.keys()
            average.counts.copy_(next(iter(averages.values()))["counts"] if whole else torch.zeros(1))
        self._round()

    def _round(self) -> None:
        self.twin.show()


def _like(value: Any, weight: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == weight.shape
