"""Looks at every step for what trains nothing or goes astray, and says each thing once, as the recipe's policy asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..embeddings.norms import NormStatistics
from ..errors import StageError
from ..recipe.options import GuardOptions

_WAY = "mend what it says and begin anew"
MOST = 20  # things of one kind that are said one by one; the rest is counted
_KINDS = {
    "norm": "embeddings whose norms left the band",
    "frozen_vectors": "embeddings that did not move",
    "stalled_lr": "flat step sizes",
}


class NotFinite(StageError):
    """A loss or a gradient is not a finite number; nothing has moved."""


class Halted(StageError):
    """Something was found for which the recipe asks to stop: all processes stop after the same step."""


def advice(dtype: torch.dtype) -> str:
    """What may help against values that are not finite, in a model of this data type."""
    if dtype == torch.float16:
        return "float16 holds no value above 65,504: try model.dtype = 'bfloat16', or 'float32'"
    return "a smaller learning_rate may help, or a lower clip_norm"


class Guard:
    """One for each train stage. What a step costs depends on the rows in its batch."""

    def __init__(self, options: GuardOptions, say: Callable[[str], None]) -> None:
        """`options` are the stage's `guard`; `say` takes the warnings."""
        self.options, self.say = options, say
        self._said: dict[str, set[str]] = {}
        self._left_out = 0
        self._stop: list[tuple[str, str]] = []  # what the run is to stop for: its kind, and the text
        self._unmoved: dict[str, Tensor] = {}  # (rows,) int32: steps in a row in which a row did not move
        self._zeros: Counter[str] = Counter()  # steps in a row with a step size of 0
        self._found: dict[str, list[float]] = {}  # how many steps, and the first step size that was found

    def rows(
        self, key: str, count: int, index: Tensor, moves: Tensor, before: Tensor, after: Tensor,
        embeddings: Sequence[str], spans: Mapping[str, range], usual: NormStatistics,
    ) -> None:  # fmt: skip
        """Look at the rows `index` of a table of `count` rows, (rows, width) before and after a step.

        `moves` (rows,) says which have a learning rate at all.
        """
        bad = torch.zeros_like(moves)
        if self.options.frozen_vectors != "off":
            unmoved = self._unmoved.get(key, torch.zeros(count, dtype=torch.int32)).to(index.device)
            self._unmoved[key] = unmoved
            steps = torch.where((after != before).any(dim=1) | ~moves, 0, unmoved[index] + 1).to(torch.int32)
            unmoved[index] = steps
            bad |= steps == self.options.frozen_vectors_after
        norms = after.norm(dim=1)
        if self.options.norm != "off":
            low, high = (end * usual.median for end in (self.options.norm_band.low, self.options.norm_band.high))
            bad |= (norms < low) | (norms > high)
        if bool(bad.any()):
            self._rows_found(key, index[bad].tolist(), norms[bad].tolist(), embeddings, spans, usual.median)

    def _rows_found(
        self, key: str, rows: list[int], norms: list[float], embeddings: Sequence[str], spans: Mapping[str, range],
        median: float,
    ) -> None:  # fmt: skip
        band = self.options.norm_band
        for row, norm in zip(rows, norms, strict=True):
            embedding = next(embedding for embedding in embeddings if row in spans[embedding])
            vector = f"vector {row - spans[embedding].start + 1} of {embedding!r} in {key}"
            if not band.low * median <= norm <= band.high * median and self.options.norm != "off":
                text = (
                    f"the norm of {vector} is {norm:.3g}, {norm / median:.3g} times the vocabulary's median; "
                    "preserve_norm holds norms, a smaller learning_rate slows them"
                )
                self.tell("norm", embedding, text)
            if (
                self.options.frozen_vectors != "off"
                and int(self._unmoved[key][row]) == self.options.frozen_vectors_after
            ):
                steps = self.options.frozen_vectors_after
                self.tell(
                    "frozen_vectors",
                    embedding,
                    f"{vector} has not moved in {steps} of its steps: learning_rate is too small",
                )

    def step_size(self, name: str, rate: float, found: float | None) -> None:
        """Look at the step size of an embedding or another thing; `found` is what Prodigy has found, None for
        others.
        """
        after = self.options.stalled_lr_after
        if self.options.stalled_lr == "off":
            return
        if rate == 0:
            self._zeros[name] += 1
            if self._zeros[name] == after:
                self.tell(
                    "stalled_lr", name, f"the step size of {name!r} has been 0 for {after} steps: nothing is learnt"
                )
        elif self._zeros:
            self._zeros.pop(name, None)
        if found is not None:
            seen = self._found.setdefault(name, [0, found])
            seen[0] += 1
            if seen[0] == after and found <= 1.001 * seen[1]:
                text = f"Prodigy has not found a larger step size than {found:.3g} for {name!r} in {after} steps"
                self.tell("stalled_lr", name, f"{text}; learning_rate = 1 is usual, d0 and d_coef make it begin higher")

    def passes(self, error: NotFinite) -> bool:
        """Whether a step whose loss or gradient is not finite is left out, so that the training goes on."""
        if self.options.not_finite == "stop":
            return False
        self._left_out += 1
        self.tell("not_finite", "", f"{error}: the step is left out, nothing moves in it")
        return True

    def tell(self, kind: str, name: str, text: str) -> None:
        """Say it, if it was not said before; where the policy is `stop`, `hold` says it when the step is done."""
        said = self._said.setdefault(kind, set())
        if name in said:
            return
        said.add(name)
        if getattr(self.options, kind) == "stop":
            self._stop.append((kind, text))
        elif len(said) <= MOST:
            self.say(text)

    @property
    def stops(self) -> bool:
        """Whether something was found for which the recipe asks to stop."""
        return bool(self._asked())

    def _asked(self) -> list[tuple[str, str]]:
        """What was found for which the recipe asks to stop: it may only warn by now of what it once stopped for."""
        return [(kind, text) for kind, text in self._stop if getattr(self.options, kind) == "stop"]

    def hold(self) -> None:
        """Halted where something was found for which the recipe asks to stop, now or before a checkpoint: all of it."""
        found = self._asked()
        if not found:
            return
        texts = [text for _, text in found[:MOST]] + [f"{len(found) - MOST:,} more"] * (len(found) > MOST)
        kinds = [f"guard.{kind}" for kind in dict.fromkeys(kind for kind, _ in found)]
        way = f"{_WAY}, or with {' = '.join(kinds)} = 'warn' and --from-checkpoint on from here"
        raise Halted(f"{'; and '.join(texts)} ({' = '.join(kinds)} = 'stop'; {way})")

    def close(self) -> None:
        """Count what was too much to be said one by one."""
        for kind, said in self._said.items():
            if len(said) > MOST:
                self.say(f"and {len(said) - MOST:,} more {_KINDS[kind]}")
        if self._left_out:
            self.say(f"{self._left_out} steps were left out because loss or gradient was not finite")

    def state(self) -> dict[str, Any]:
        """All that is needed to go on and say nothing twice."""
        found = {name: list(seen) for name, seen in self._found.items()}
        return {
            "said": {kind: sorted(said) for kind, said in self._said.items()}, "left_out": self._left_out,
            "unmoved": self._unmoved, "zeros": dict(self._zeros), "found": found,
            "stops": [list(one) for one in self._stop],
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        self._said = {kind: set(said) for kind, said in state["said"].items()}
        self._left_out, self._zeros = state["left_out"], Counter(state["zeros"])
        self._found = {name: list(seen) for name, seen in state["found"].items()}
        self._unmoved = dict(state["unmoved"])
        self._stop = [(kind, text) for kind, text in state.get("stops", ())]
