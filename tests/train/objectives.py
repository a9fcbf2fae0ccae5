"""Objectives with the default options of a train stage, a few changed."""

from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from pivotune.pipeline.recipe.options import NoiseOptions, ObjectiveOptions, TimestepOptions
from pivotune.pipeline.recipe.typed import options_of
from pivotune.pipeline.train.objective import objective_for


def scheduler(kind="epsilon", **changes):
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=kind, **changes
    )


def objective_with(made, *, kind="diffusion", noise=None, timesteps=None, **options):
    return objective_for(
        kind,
        made,
        options_of(ObjectiveOptions, **options),
        options_of(NoiseOptions, **(noise or {})),
        options_of(TimestepOptions, **(timesteps or {})),
    )


def diffusion(kind="epsilon", **options):
    return objective_with(scheduler(kind), **options)


def flow(*, shift=3.0, **options):
    return objective_with(FlowMatchEulerDiscreteScheduler(shift=shift), **options)
