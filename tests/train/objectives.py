"""Tables of options as a recipe's stage has them, with a few changed."""

from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from pivotune.pipeline.recipe.defaults import defaults
from pivotune.pipeline.train.objective import objective_for


def scheduler(kind="epsilon", **changes):
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=kind, **changes
    )


def diffusion(kind="epsilon", *, noise=None, timesteps=None, **options):
    return objective_for(scheduler(kind), options, _table("noise", noise), _table("timesteps", timesteps))


def flow(*, shift=3.0, noise=None, timesteps=None, **options):
    made = FlowMatchEulerDiscreteScheduler(shift=shift)
    return objective_for(made, options, _table("noise", noise), _table("timesteps", timesteps))


def huber(**changes):
    return defaults("tables/objective.json")["huber"] | changes


def _table(name, changes):
    return defaults(f"tables/{name}.json") | (changes or {})
