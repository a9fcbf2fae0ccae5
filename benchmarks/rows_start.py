"""Start-up: CPU time of the command line beside that of an interpreter that does nothing."""

from __future__ import annotations

import sys

from measure import Row, child, ratios

ROUNDS = 9
NOTHING = [sys.executable, "-c", "pass"]
PIVOTUNE = [sys.executable, "-m", "pivotune"]


def rows() -> list[Row]:
    commands = {"nothing": NOTHING, "help": [*PIVOTUNE, "--help"], "check": [*PIVOTUNE, "check", "quickstart"]}
    for command in commands.values():
        child(command)
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(ROUNDS):
        for name, command in commands.items():
            seconds[name].append(child(command).cpu)
    return [
        Row("pivotune --help: CPU time", "<= 6 x python -c pass", 6, ratios(seconds["help"], seconds["nothing"])),
        Row(
            "pivotune check quickstart: CPU time",
            "<= 14 x python -c pass",
            14,
            ratios(seconds["check"], seconds["nothing"]),
        ),
    ]
