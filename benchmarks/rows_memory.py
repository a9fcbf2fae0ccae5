"""Goal 3: what training adds to SDXL's frozen vocabularies, in bytes and as the peak of a fresh process."""

from __future__ import annotations

import json
import sys
from typing import Any

from measure import Row, in_fresh_process, ratios

EMBEDDINGS = 1000
SIZES = (768, 1280)  # SDXL: CLIP-L and bigG
MIB = 1 << 20
ROUNDS = 3


def rows() -> list[Row]:
    measured: dict[str, list[Any]] = {}
    for _ in range(ROUNDS):
        for mode in ("ours", "wrapped", "whole"):
            measured.setdefault(mode, []).append(in_fresh_process("rows_memory.py", mode, str(EMBEDDINGS)))
    ours = measured["ours"]
    floor = 16 * EMBEDDINGS * 4 * sum(SIZES)  # value, gradient, two moments: 4 bytes each
    peaks = {mode: [one["peak"] for one in found] for mode, found in measured.items()}
    of = f"training state, SDXL, {EMBEDDINGS} embeddings"
    goal, limit = "<= 1.1 x 16 bytes a value + 8 MiB", 1.1 + 8 * MIB / floor
    return [
        Row(f"{of}: all tensors / 16 bytes a value", goal, limit, [one["state"] / floor for one in ours]),
        Row(f"{of}: peak of a fresh process / 16 bytes a value", goal, limit, [peak / floor for peak in peaks["ours"]]),
        Row(f"{of}: peak", "<= 1/3 of OneTrainer's way", 1 / 3, ratios(peaks["ours"], peaks["wrapped"])),
        Row(f"{of}: peak", "<= 1/15 of the whole-table way", 1 / 15, ratios(peaks["ours"], peaks["whole"])),
        Row(f"gradient, SDXL, {EMBEDDINGS} embeddings: bytes / (rows of the caption x width x 4)", "<= 1, exactly", 1.0,
            [one["gradient"] / one["rows"] for one in ours]),
    ]  # fmt: skip


def measure(mode: str, embeddings: int) -> dict[str, int]:
    """Three steps with both tables; everything is loaded and tried with one embedding before counting begins."""
    from ours import Slots, unique_bytes
    from peers import WholeTable, WrappedTable
    from scene import VECTORS, make_scene

    method = {"ours": Slots, "wrapped": WrappedTable, "whole": WholeTable}[mode]
    tiny = method(make_scene(1, 8))
    tiny.step()
    scenes = [make_scene(embeddings, width) for width in SIZES]
    before = resident("VmRSS")
    reset_peak()
    methods = [method(scene) for scene in scenes]
    for _ in range(3):
        for one in methods:
            one.forward().backward(one.pull)
        state = sum(unique_bytes(one.state()) for one in methods)
        gradients = [leaf.leaf.grad for one in methods if mode == "ours" for leaf in one.active.values()]
        for one in methods:
            one.learn()
    return {
        "state": state,
        "peak": resident("VmHWM") - before,
        "gradient": sum(g.untyped_storage().nbytes() for g in gradients),
        "rows": sum(3 * VECTORS * width * 4 for width in SIZES),
    }


def resident(field: str) -> int:
    """A line of Linux' status of this process, in bytes."""
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def reset_peak() -> None:
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
