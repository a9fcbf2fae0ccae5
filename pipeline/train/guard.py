"""Checks every step for frozen vectors, norms, stalled learning rates and values that are not finite."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..embeddings.norms import NormStatistics
from ..errors import StageError
from ..recipe.options import GuardOptions
from ..text import count_of

_HINT = "fix it and restart with --fresh"
MOST = 20  # warnings of one kind; further ones are only counted
_KINDS = {
    "norm": ("more embedding whose norms left the band", "more embeddings whose norms left the band"),
    "frozen_vectors": ("more embedding with frozen vectors", "more embeddings with frozen vectors"),
    "stalled_lr": ("more stalled learning rate", "more stalled learning rates"),
}


class NotFinite(StageError):
    """A loss or a gradient is not a finite number; no weight has changed."""


class Halted(StageError):
    """A check failed whose policy is `stop`: all processes stop after the same step."""


def advice(dtype: torch.dtype) -> str:
    """What may help against values that are not finite, for a model of this dtype."""
    if dtype == torch.float16:
        return "float16 holds no value above 65,504: try model.dtype = 'bfloat16', or 'float32'"
    return "a smaller learning_rate may help, or a lower clip_norm"


class Guard:
    """The checks of one train stage. Their cost depends on the rows of the batch."""

    def __init__(self, options: GuardOptions, warn: Callable[[str], None]) -> None:
        """`options` are the stage's `guard`; `warn` takes the warnings."""
        self.options, self.warn = options, warn
        self._reported: dict[str, set[str]] = {}
        self._skipped = 0
        self._stop: list[tuple[str, str]] = []  # reasons to stop: kind and text
        self._frozen_steps: dict[str, Tensor] = {}  # (rows,) int32: successive steps in which a row did not change
        self._zeros: Counter[str] = Counter()  # successive steps with a learning rate of 0
        self._found: dict[str, list[float]] = {}  # how many steps, and Prodigy's first `d`

    def check_rows(
        self, key: str, count: int, index: Tensor, trained: Tensor, before: Tensor, after: Tensor,
        embeddings: Sequence[str], spans: Mapping[str, range], usual: NormStatistics, outputs: Collection[str] = (),
    ) -> None:  # fmt: skip
        """Check the rows `index` of a table of `count` rows, (rows, width) before and after a step.

        `trained` (rows,) says which have a learning rate above 0. The norms of `outputs` are not those of a vocabulary,
        and are not checked.
        """
        bad = torch.zeros_like(trained)
        if self.options.frozen_vectors != "off":
            if key not in self._frozen_steps:
                self._frozen_steps[key] = torch.zeros(count, dtype=torch.int32, device=index.device)
            # those of a checkpoint are on the CPU
            frozen_steps = self._frozen_steps[key] = self._frozen_steps[key].to(index.device)
            steps = torch.where((after != before).any(dim=1) | ~trained, 0, frozen_steps[index] + 1).to(torch.int32)
            frozen_steps[index] = steps
            bad |= steps == self.options.frozen_vectors_after
        norms = after.norm(dim=1)
        if self.options.norm != "off":
            low, high = (end * usual.median for end in (self.options.norm_band.low, self.options.norm_band.high))
            strange = (norms < low) | (norms > high)
            if outputs:
                inputs = [name not in outputs for name in embeddings for _ in spans[name]]
                strange &= torch.tensor(inputs, device=strange.device)
            bad |= strange
        if bool(bad.any()):
            self._rows_found(key, index[bad].tolist(), norms[bad].tolist(), embeddings, spans, usual.median, outputs)

    def _rows_found(
        self, key: str, rows: list[int], norms: list[float], embeddings: Sequence[str], spans: Mapping[str, range],
        median: float, outputs: Collection[str],
    ) -> None:  # fmt: skip
        band = self.options.norm_band
        for row, norm in zip(rows, norms, strict=True):
            embedding = next(embedding for embedding in embeddings if row in spans[embedding])
            vector = f"vector {row - spans[embedding].start + 1} of {embedding!r} in {key}"
            usual = embedding in outputs or band.low * median <= norm <= band.high * median
            if not usual and self.options.norm != "off":
                text = (
                    f"the norm of {vector} is {norm:.3g}, {norm / median:.3g} times the vocabulary's median; "
                    "preserve_norm limits norms, a smaller learning_rate slows their growth"
                )
                self.report("norm", embedding, text)
            if (
                self.options.frozen_vectors != "off"
                and int(self._frozen_steps[key][row]) == self.options.frozen_vectors_after
            ):
                steps = self.options.frozen_vectors_after
                self.report(
                    "frozen_vectors",
                    embedding,
                    f"{vector} did not change in {steps} of its steps: learning_rate is too small",
                )

    def check_learning_rate(self, name: str, rate: float, found: float | None) -> None:
        """Check the learning rate of an embedding or another trainable; `found` is Prodigy's `d`, None for others."""
        after = self.options.stalled_lr_after
        if self.options.stalled_lr == "off":
            return
        if rate == 0:
            self._zeros[name] += 1
            if self._zeros[name] == after:
                self.report(
                    "stalled_lr",
                    name,
                    f"the learning rate of {name!r} has been 0 for {count_of(after, 'step')}: nothing is trained",
                )
        elif self._zeros:
            self._zeros.pop(name, None)
        if found is not None:
            seen = self._found.setdefault(name, [0, found])
            seen[0] += 1
            if seen[0] == after and found <= 1.001 * seen[1]:
                steps = count_of(after, "step")
                text = f"Prodigy's learning rate for {name!r} has not grown above {found:.3g} in {steps}"
                self.report(
                    "stalled_lr", name, f"{text}; learning_rate = 1 is usual, a larger d0 or d_coef starts higher"
                )

    def skips(self, error: NotFinite) -> bool:
        """Whether a step whose loss or gradient is not finite is skipped instead of stopping the run."""
        if self.options.not_finite == "stop":
            return False
        self._skipped += 1
        self.report("not_finite", "", f"{error}: the step is skipped")
        return True

    def report(self, kind: str, name: str, text: str) -> None:
        """Warn once; where the policy is `stop`, `raise_if_stopping` raises it after the step."""
        reported = self._reported.setdefault(kind, set())
        if name in reported:
            return
        reported.add(name)
        if getattr(self.options, kind) == "stop":
            self._stop.append((kind, text))
        elif len(reported) <= MOST:
            self.warn(text)

    @property
    def stops(self) -> bool:
        """Whether the run is to stop."""
        return bool(self._asked())

    def _asked(self) -> list[tuple[str, str]]:
        """The reasons to stop. A resumed run may only warn of what it once stopped for."""
        return [(kind, text) for kind, text in self._stop if getattr(self.options, kind) == "stop"]

    def raise_if_stopping(self) -> None:
        """Raise Halted with all reasons to stop, of now or from a checkpoint."""
        found = self._asked()
        if not found:
            return
        texts = [text for _, text in found[:MOST]] + [f"{len(found) - MOST:,} more"] * (len(found) > MOST)
        kinds = [f"guard.{kind}" for kind in dict.fromkeys(kind for kind, _ in found)]
        hint = f"{_HINT}, or with {' = '.join(kinds)} = 'warn' and --from-checkpoint to continue from here"
        raise Halted(f"{'; and '.join(texts)} ({' = '.join(kinds)} = 'stop'; {hint})")

    def close(self) -> None:
        """Warn of how many more there were than were listed."""
        for kind, reported in self._reported.items():
            if len(reported) > MOST:
                self.warn(f"and {count_of(len(reported) - MOST, *_KINDS[kind])}")
        if self._skipped:
            self.warn(f"skipped {count_of(self._skipped, 'step')} because loss or gradient was not finite")

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to continue and to warn of nothing twice."""
        found = {name: list(seen) for name, seen in self._found.items()}
        return {
            "reported": {kind: sorted(reported) for kind, reported in self._reported.items()}, "skipped": self._skipped,
            "frozen_steps": self._frozen_steps, "zeros": dict(self._zeros), "found": found,
            "stops": [list(one) for one in self._stop],
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        self._reported = {kind: set(reported) for kind, reported in state["reported"].items()}
        self._skipped, self._zeros = state["skipped"], Counter(state["zeros"])
        self._found = {name: list(seen) for name, seen in state["found"].items()}
        self._frozen_steps = dict(state["frozen_steps"])
        self._stop = [(kind, text) for kind, text in state.get("stops", ())]
