"""Does what a stage asks of the denoiser fit the model: diffusion or flow matching, noise or velocity?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...converters.families import Family
from ..models.stated import scheduler_config
from .fill import WEIGHTINGS
from .model import ModelSpec
from .problem import Finding, Place

NAMES = {"diffusion": "a diffusion model", "flow": "a flow matching model"}


def objective_findings(
    place: Place, options: Mapping[str, Any], spec: ModelSpec, family: Family | None
) -> Iterator[Finding]:
    """What of `objective` and `timesteps` has no meaning for this model, or cannot be learnt from."""
    config = scheduler_config(spec)
    yield from _time_steps(place, options["timesteps"], config.get("num_train_timesteps"))
    kind = _kind(config, family)
    if kind is None:
        yield from _noiseless(place, options["objective"], None)
        return
    objective, where = options["objective"], (*place, "objective")
    if objective["weighting"] not in WEIGHTINGS[kind]:
        text = f"{objective['weighting']} is nothing for {NAMES[kind]}; use {', '.join(WEIGHTINGS[kind])}"
        yield Finding((*where, "weighting"), text)
    if kind == "diffusion":
        yield from _noiseless(place, objective, config.get("prediction_type"))
        return
    for key in ("prediction", "zero_terminal_snr"):
        if objective[key]:
            yield Finding((*where, key), f"{key} says nothing for {NAMES[kind]}; leave it out")
    if objective["loss"] in ("huber", "smooth_l1") and objective["huber"]["schedule"] == "snr":
        text = f'huber.schedule = "snr" (the default) is nothing for {NAMES[kind]}; use constant or exponential'
        yield Finding((*where, "huber"), text)


def _kind(config: Mapping[str, Any], family: Family | None) -> str | None:
    """`diffusion` or `flow`, by the model's own scheduler, else as its family has it; None where nobody knows."""
    if "_class_name" in config:
        return "flow" if str(config["_class_name"]).startswith("FlowMatch") else "diffusion"
    return family.objective if family is not None else None


def _noiseless(place: Place, objective: Mapping[str, Any], model: str | None) -> Iterator[Finding]:
    """Predicting the noise where there is nothing else; `model` is what the model's scheduler predicts, if known."""
    if objective["zero_terminal_snr"] and (objective["prediction"] or model) == "epsilon":
        text = "at the last time step of zero terminal SNR nothing is to be learnt from predicting the noise"
        yield Finding((*place, "objective"), f'{text}; it needs a model with prediction = "v_prediction"')


def _time_steps(place: Place, times: Mapping[str, Any], count: int | None) -> Iterator[Finding]:
    high = times["high"] or count
    if high is not None and times["low"] >= high:
        end = f"high = {high}" if times["high"] else f"the model's {count} time steps"
        yield Finding((*place, "timesteps"), f"low = {times['low']} leaves no time step below {end} to train")
    if count is not None and (times["high"] or 0) > count:
        yield Finding((*place, "timesteps"), f"high = {times['high']}, but the model has {count} time steps")
