"""Which pictures make which batch: every picture exactly once an epoch, batches of one shape, no state."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable, Sequence
from functools import cached_property
from itertools import pairwise

import torch

from ..train.draws import generator
from .balance import Turns


class Order:
    """The batches of every epoch. `shapes` has the shape of each example; a batch holds examples of one shape.

    An epoch shows what its concepts' turns say, shuffled. The examples of a shape are split evenly: five of them at a
    batch size of four make batches of three and two, none is left out and none is shown twice to fill up a batch.
    """

    def __init__(self, turns: Sequence[Turns], shapes: Sequence[Hashable], size: int, seed: int) -> None:
        self.turns, self.shapes, self.size, self.seed = turns, shapes, size, seed
        self._regular = len(set(shapes)) == 1 or all(turn.per_epoch % len(turn.examples) == 0 for turn in turns)
        self._starts = [0]  # number of the first batch of each epoch, where epochs differ in length
        self._kept: tuple[int, list[tuple[int, ...]]] = (-1, [])

    @cached_property
    def batches_per_epoch(self) -> int:
        """Batches of the first epoch. Later ones differ by a few where several shapes meet concepts that take turns."""
        return len(self.epoch(0))

    def at(self, number: int) -> tuple[int, ...]:
        """The examples of the `number`-th batch of the run, from 0: the same whatever was asked before."""
        if self._regular:
            epoch, place = divmod(number, self.batches_per_epoch)
        else:
            while self._starts[-1] <= number:
                self._starts.append(self._starts[-1] + len(self.epoch(len(self._starts) - 1)))
            epoch = bisect_right(self._starts, number) - 1
            place = number - self._starts[epoch]
        return self.epoch(epoch)[place]

    def epoch(self, number: int) -> list[tuple[int, ...]]:
        """All batches of one epoch, in their order."""
        if self._kept[0] != number:
            self._kept = (number, self._made(number))
        return self._kept[1]

    def _made(self, epoch: int) -> list[tuple[int, ...]]:
        draw = generator(self.seed, "order", epoch)
        shown = [example for number in range(len(self.turns)) for example in self._turn(number, epoch)]
        groups: dict[Hashable, list[int]] = {}
        for example in shown:
            groups.setdefault(self.shapes[example], []).append(example)
        batches = []
        for group in groups.values():
            mixed = [group[place] for place in torch.randperm(len(group), generator=draw).tolist()]
            count = -(-len(mixed) // self.size)
            ends = [len(mixed) * part // count for part in range(count + 1)]
            batches += [tuple(mixed[begin:end]) for begin, end in pairwise(ends)]
        return [batches[place] for place in torch.randperm(len(batches), generator=draw).tolist()]

    def _turn(self, concept: int, epoch: int) -> list[int]:
        """What one concept shows in an epoch: its share of an endless row of rounds, each round a shuffle of all."""
        turn = self.turns[concept]
        length = len(turn.examples)
        if turn.per_epoch == length:
            return list(turn.examples)
        begin, end = epoch * turn.per_epoch, (epoch + 1) * turn.per_epoch
        row: list[int] = []
        for number in range(begin // length, -(-end // length)):
            row += torch.randperm(length, generator=generator(self.seed, "turns", concept, number)).tolist()
        first = begin - begin // length * length
        return [turn.examples[place] for place in row[first : first + turn.per_epoch]]
