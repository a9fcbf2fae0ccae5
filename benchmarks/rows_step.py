"""Goals 1 and 2: the embedding part of a training step against other methods, and its growth with the embeddings."""

from __future__ import annotations

import json
import sys

import torch
from measure import Row, in_fresh_process, in_turn, ratios
from ours import Slots
from peers import WholeTable, WrappedTable
from scene import WIDTHS, make_scene

ROUNDS = 7


def rows() -> list[Row]:
    found: list[Row] = []
    for table in WIDTHS:
        found += [Row(**row) for row in in_fresh_process("rows_step.py", table, keep_pages=True)]  # type: ignore[union-attr]
    return found + [Row(**row) for row in in_fresh_process("rows_step.py", "growth", keep_pages=True)]  # type: ignore[union-attr]


def against_peers(table: str) -> list[Row]:
    ten = make_scene(10, WIDTHS[table])
    thousand = make_scene(1000, WIDTHS[table], ten.table)
    same_vectors(ten)
    modes = {
        "ours": Slots(ten), "wrapped": WrappedTable(ten), "whole": WholeTable(ten),
        "ours, 1000": Slots(thousand), "wrapped, 1000": WrappedTable(thousand),
    }  # fmt: skip
    times = {"ours": 40, "wrapped": 4, "whole": 1, "ours, 1000": 40, "wrapped, 1000": 3}
    seconds = in_turn({name: mode.step for name, mode in modes.items()}, ROUNDS, times)
    part = f"embedding part of a step, {table}"
    return [
        Row(f"{part}, 10 embeddings", "<= 1/15 of OneTrainer's way", 1 / 15,
            ratios(seconds["ours"], seconds["wrapped"])),
        Row(f"{part}, 10 embeddings", "<= 1/100 of the whole-table way", 1 / 100,
            ratios(seconds["ours"], seconds["whole"])),
        Row(
            f"{part}, 1000 embeddings", "<= 1/5 of OneTrainer's way", 1 / 5,
            ratios(seconds["ours, 1000"], seconds["wrapped, 1000"]),
        ),
    ]  # fmt: skip


def growth() -> list[Row]:
    """At width 8 arithmetic costs nothing: what is left is the host's work for a step."""
    one = make_scene(1, 8)
    thousand = make_scene(1000, 8, one.table)
    modes = {
        "one": Slots(one).step, "thousand": Slots(thousand).step,
        "wrapped, one": WrappedTable(one).step, "wrapped, thousand": WrappedTable(thousand).step,
    }  # fmt: skip
    seconds = in_turn(modes, ROUNDS, {"one": 60, "thousand": 60, "wrapped, one": 60, "wrapped, thousand": 4})
    ours, theirs = (
        ratios(seconds[many], seconds[few])
        for many, few in (("thousand", "one"), ("wrapped, thousand", "wrapped, one"))
    )
    text = f"<= 2 (OneTrainer's way: {sorted(theirs)[len(theirs) // 2]:.0f})"
    return [Row("host time of a step, 1000 embeddings / 1 embedding", text, 2.0, ours)]


def same_vectors(scene: object) -> None:
    """The methods must look up the same before their times may be compared."""
    methods = (Slots(scene), WrappedTable(scene), WholeTable(scene))  # type: ignore[arg-type]
    ours, wrapped, whole = (method.forward() for method in methods)
    assert torch.equal(ours, wrapped)
    assert torch.equal(ours, whole)


if __name__ == "__main__":
    measured = growth() if sys.argv[1] == "growth" else against_peers(sys.argv[1])
    print(json.dumps([vars(row) for row in measured]))
