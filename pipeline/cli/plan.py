"""`pivotune plan`: what a recipe would do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .options import json_option, print_json, recipe_argument, set_option, vram_option

if TYPE_CHECKING:
    from ..checks.plan import Plan
    from ..checks.preflight import Preflight
    from ..recipe.model import Recipe


@click.command()
@recipe_argument
@set_option
@json_option
@click.option(
    "--no-estimates", is_flag=True, help="Skip the estimates of disk space and memory, which take some seconds."
)
@vram_option("Only say whether each train stage fits into a GPU with this much memory, and which keys make it fit.")
def plan(recipe: str, overrides: tuple[str, ...], as_json: bool, no_estimates: bool, vram: float | None) -> None:
    """Show what a recipe would do: its stages, the tokens of initial texts, and example captions as tokenized.

    Loads the model's tokenizers, not its weights. RECIPE is a file or the name of a shipped recipe. With --vram nothing
    is downloaded: a model that is not at hand has the size of its family's usual model.
    """
    if vram is not None:
        _show_fit(recipe, overrides, vram, as_json=as_json)
        return
    from ..checks.plan import make_plan
    from ..checks.plan_text import plan_json, plan_text
    from ..checks.preflight import resource_lines
    from ..checks.recipe import checked_recipe
    from ..models.tokenizers import load_tokenizers

    loaded, warnings = checked_recipe(recipe, overrides)
    made = make_plan(loaded, load_tokenizers(loaded.model))
    preflight = None if no_estimates else _estimates(loaded, made)
    if as_json:
        print_json({**plan_json(made), "preflight": preflight.facts if preflight else None})
        return
    for warning in warnings:
        click.echo(warning.shown(recipe), err=True)
    click.echo(plan_text(made))
    if preflight is not None:
        for line in resource_lines(preflight):
            click.echo(line)


def _show_fit(name: str, overrides: tuple[str, ...], gib: float, *, as_json: bool) -> None:
    """Print whether a recipe fits into the memory of a GPU. Its images need not be there yet."""
    from ..checks.fit import fit, fit_json, fit_lines
    from ..errors import RecipeError
    from ..recipe.load import load_recipe

    found = fit(load_recipe(name, overrides), gib)
    if found is None:
        raise RecipeError([f"{name} has no train stage whose memory could be estimated; remove --vram"])
    if as_json:
        print_json(fit_json(found))
        return
    for line in fit_lines(found):
        click.echo(line)


def _estimates(recipe: Recipe, made: Plan) -> Preflight | None:
    """Estimates of disk space and memory; None if the recipe's device is not available on this machine."""
    from ..checks.preflight import Preflight, estimate, unreadable_images
    from ..device import pick_device
    from ..errors import StageError

    try:
        device = pick_device(recipe.device)
    except StageError as error:
        click.echo(f"no estimate of disk and memory: {error}", err=True)
        return None
    preflight = Preflight()
    preflight.errors += unreadable_images([caption.path for caption in made.captions], preflight)
    estimate(recipe, made, None, device, preflight)
    return preflight
