"""A part of the model whose optimizer is spread over the processes: DeepSpeed's ZeRO 1 and 2, as Accelerate makes them.

Every process has the part's weights whole; of the float32 copy that is moved, of the optimizer's state and (ZeRO 2) of
the gradients each has a piece (Rajbhandari et al. 2020, ZeRO). The pieces of all weights lie in one flat tensor.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import StageError

SHARED_MEMORY_OP = "deepspeed_shm_comm"


@dataclass(frozen=True)
class Place:
    """Where a part stands: its name in the pipeline, and whether this is the main process."""

    pipe: Any
    name: str
    main: bool


class Engine:
    """DeepSpeed's engine around one part. The part stays where it is; only its forward goes through the engine.

    `unreached` has the weights that no gradient has reached so far.
    """

    def __init__(
        self, place: Place, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, clip_norm: float
    ) -> None:
        """`optimizer` is one over the `parameters`; the engine has it move this process's piece of them instead.

        Raises StageError where DeepSpeed refuses the launcher's configuration.
        """
        self.pipe, self.name, self.main = place.pipe, place.name, place.main
        self.parameters, self.optimizer = dict(parameters), optimizer
        self._marks = [(parameter, dict(vars(parameter))) for parameter in self.parameters.values()]
        self.part: nn.Module = getattr(self.pipe, self.name)
        engine = _prepared(_Around(self.part), optimizer, clip_norm)
        self.engine, self.zero = engine, engine.optimizer
        (self.flat,) = (one for group in optimizer.param_groups for one in group["params"])
        self.weights: dict[str, nn.Parameter] = {"": self.flat}

        self.unreached = set(self.parameters)
        self._hooks = [
            one.register_hook(lambda _, key=key: self.unreached.discard(key)) for key, one in self.parameters.items()
        ]

        @wraps(self.part.forward)
        def forward(*args: Any, **named: Any) -> Any:
            return engine(*args, **named)

        self.part.forward = forward

    def norm(self) -> float:
        """The L2 norm of the gradient of all weights, added up over the processes; infinite where it is not finite."""
        norm = float(self.zero.scaled_global_norm())
        return norm if norm >= 0 else math.inf

    def step(self) -> None:
        """Move along the gradient, clipped, and give every process the weights."""
        self.engine.step()

    def clear(self) -> None:
        """Forget the gradient, as the engine does at the end of a step."""
        self.zero.zero_grad()
        for group in self.zero.averaged_gradients:
            self.zero.averaged_gradients[group] = None

    def show(self) -> None:
        """Put into the part, in every process, what all pieces hold now."""
        self.zero.update_lp_params()

    @torch.no_grad()
    def whole(self, pieces: Tensor) -> dict[str, Tensor]:
        """Each weight's values from a tensor that is laid out as `flat`, in float32 on the CPU, in the main process.

        All processes must ask together. DeepSpeed gathers what stands in `flat`, so each of them stands there in turn.
        """
        from deepspeed.utils import safe_get_full_fp32_param

        kept, values = self.flat.detach().clone(), {}
        self.flat.copy_(pieces)
        for key, parameter in self.parameters.items():
            value = safe_get_full_fp32_param(parameter)
            if self.main:
                values[key] = value.detach().cpu()
        self.flat.copy_(kept)
        return values

    @torch.no_grad()
    def fill(self, pieces: Tensor, values: Mapping[str, Tensor]) -> None:
        """Put this process's pieces of these weights' values into a tensor that is laid out as `flat`; nothing is sent.

        Raises StageError where a shape differs.
        """
        from deepspeed.utils import safe_set_full_fp32_param

        kept = self.flat.detach().clone()
        self.flat.copy_(pieces)
        for key, value in values.items():
            parameter = self.parameters[key]
            if value.shape != parameter.shape:
                raise StageError(f"{key} is {tuple(parameter.shape)}, the checkpoint has {tuple(value.shape)}")
            safe_set_full_fp32_param(parameter, value.to(parameter.device, torch.float32))
        if pieces is not self.flat:
            pieces.copy_(self.flat)
            self.flat.copy_(kept)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Within it the main process has the part in the pipeline, as it always has."""
        yield

    def end(self) -> None:
        """The part is on its own again, with the weights it has."""
        del self.part.forward
        self.engine.destroy()
        self.engine.optimizer = None  # it is destroyed anew when it is collected, which would unlink the next engine's
        for hook in self._hooks:
            hook.remove()
        for parameter, marks in self._marks:  # the engine has hung itself on them: it would stay, and not be copied
            vars(parameter).clear()
            vars(parameter).update(marks)

    leave = end


class _Around(nn.Module):
    """A part as the engine calls it: its forward as it was before calls of the part went through the engine."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part, self.own = part, part.forward

    def forward(self, *args: Any, **named: Any) -> Any:
        return self.own(*args, **named)


def _prepared(module: nn.Module, optimizer: torch.optim.Optimizer, clip_norm: float) -> Any:
    """The engine that Accelerate makes of the launcher's configuration.

    Gradients of all processes are added up in float32, as everywhere in Pivotune: they are parts of one batch's. When
    a step is over is told to the engine (`set_gradient_accumulation_boundary`), so it counts nothing by itself.
    """
    from accelerate import Accelerator
    from deepspeed.ops import __compatible_ops__

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    accelerator = Accelerator()
    if accelerator.device.type == "cpu":
        __compatible_ops__[SHARED_MEMORY_OP] = False  # gloo does; else a compiler runs for minutes, without a word
    accelerator.state.deepspeed_plugin.deepspeed_config |= {
        "train_batch_size": accelerator.num_processes, "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1, "gradient_clipping": clip_norm, "gradient_allreduce_op": "sum",
        "communication_data_type": "fp32",
    }  # fmt: skip
    try:
        engine, _ = accelerator.prepare(module, optimizer)
    except (AssertionError, ValueError) as error:
        raise StageError(f"the launcher's settings of DeepSpeed: {error}") from error
    return engine
