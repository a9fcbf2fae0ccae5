"""Tables of a train stage whose options cannot be used together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .problem import Finding, Place


def table_findings(place: Place, options: dict[str, Any]) -> Iterator[Finding]:
    """What is wrong with the tables objective and timesteps of one train stage."""
    objective, times = options["objective"], options["timesteps"]
    if times["high"] is not None and times["low"] >= times["high"]:
        yield Finding(
            (*place, "timesteps"), f"low = {times['low']} leaves no time step below high = {times['high']} to train"
        )
    if objective["zero_terminal_snr"] and objective["prediction"] == "epsilon":
        text = "at the last time step of zero terminal SNR nothing is to be learnt from predicting the noise"
        yield Finding((*place, "objective"), f'{text}; it needs a model with prediction = "v_prediction"')
