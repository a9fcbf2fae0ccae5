"""What a train stage is made of: plain values, which its steps read."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..data.dataset import Dataset
from ..models.denoisers import Denoiser
from ..models.load import Model
from ..processes import ALONE, Processes
from ..words.injection import Injection
from .guard import Guard
from .locality import Locality
from .objective import Objective
from .scaling import LossScale
from .texts import Texts
from .trained import Trained
from .weights import WeightTrainer
from .word_trainer import WordTrainer


@dataclass(frozen=True, eq=False)
class Training:
    """What a train stage is made of, put together before its first step. `things` are moved in their order.

    With `texts` captions that were encoded are kept, which is right where nothing that is trained moves a text.
    """

    model: Model
    denoiser: Denoiser
    injection: Injection
    objective: Objective
    dataset: Dataset
    things: tuple[Trained, ...]
    steps: int
    accumulation: int
    seed: int
    prior_weight: float = 1.0
    locality: Locality | None = None
    scale: LossScale = field(default_factory=LossScale)
    guard: Guard | None = None
    processes: Processes = ALONE
    texts: Texts | None = None

    @property
    def words(self) -> WordTrainer | None:
        """The words among the things that are trained."""
        return next((thing for thing in self.things if isinstance(thing, WordTrainer)), None)

    @property
    def sharded(self) -> bool:
        """Whether a fine-tuned part is spread over the processes."""
        return any(isinstance(thing, WeightTrainer) and thing.spread for thing in self.things)

    @property
    def steps_per_epoch(self) -> float:
        return self.dataset.batches_per_epoch / self.accumulation
