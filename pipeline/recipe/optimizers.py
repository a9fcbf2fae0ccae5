"""The table of optimizers: everything that training, checks and FSDP must know of one. Imports no torch.

To add an optimizer, add its row here and its settings in `schemas/tables/optimizer.json` (the kind and its branch).
The settings are the arguments of its constructor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any


@dataclass(frozen=True)
class Optimizer:
    """One kind of optimizer: class `name` of `module`, which the optional dependency `extra` brings.

    `renamed` maps a setting to the argument that it is called in the library, `fixed` has arguments that no recipe
    changes. A setting that is None is left to the library.
    """

    module: str
    name: str
    state_bytes: float  # for each float32 value that is trained
    extra: str | None = None  # None where Pivotune itself depends on the library
    elementwise: bool = False  # trains each value by itself, so that it can train a shard of a weight
    averages_itself: bool = False  # schedule-free: has an average of its own, beside which there is no EMA
    adaptive: bool = False  # finds its learning rate itself; the recipe's multiplies it
    renamed: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def package(self) -> str:
        """What is imported."""
        return self.module.partition(".")[0]

    @property
    def missing(self) -> str | None:
        """What to install, where the library is not installed."""
        return f"pip install 'pivotune[{self.extra}]'" if self.extra and find_spec(self.package) is None else None


OPTIMIZERS: dict[str, Optimizer] = {
    "adamw": Optimizer("torch.optim", "AdamW", 8, elementwise=True),
    "adamw-schedule-free": Optimizer("pytorch_optimizer", "ScheduleFreeAdamW", 8, "optimizers", averages_itself=True),
    "adamw8bit": Optimizer("bitsandbytes.optim", "AdamW8bit", 2.1, "bitsandbytes"),
    "adafactor": Optimizer("transformers", "Adafactor", 0.2, fixed={"relative_step": False, "warmup_init": False}),
    "lion": Optimizer("pytorch_optimizer", "Lion", 4, "optimizers", elementwise=True),
    "came": Optimizer("pytorch_optimizer", "CAME", 4.2, "optimizers"),
    "prodigy": Optimizer(
        "prodigyopt", "Prodigy", 16, "optimizers", adaptive=True, renamed={"bias_correction": "use_bias_correction"}
    ),
    "prodigy-schedule-free": Optimizer(
        "prodigyplus.prodigy_plus_schedulefree", "ProdigyPlusScheduleFree", 4.4, "optimizers",
        averages_itself=True, adaptive=True, fixed={"stochastic_rounding": False},
        renamed={"bias_correction": "use_bias_correction", "adapt_steps": "prodigy_steps"},
    ),
}  # fmt: skip
