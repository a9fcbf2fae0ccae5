"""`pivotune plan`: what a recipe would do."""

from __future__ import annotations

import click

from .options import json_option, print_json, recipe_argument, set_option


@click.command()
@recipe_argument
@set_option
@json_option
def plan(recipe: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Show what a recipe would do: stages, tokens of every initial text, captions as the encoders see them.

    Loads the model's tokenizers, not its weights. RECIPE is a file or the name of a recipe that ships.
    """
    from ..models.tokenizers import load_tokenizers
    from ..recipe.check import checked_recipe
    from ..recipe.plan import make_plan
    from ..recipe.plan_text import plan_json, plan_text

    loaded, warnings = checked_recipe(recipe, overrides)
    made = make_plan(loaded, load_tokenizers(loaded.model))
    if as_json:
        print_json(plan_json(made, None))
        return
    for warning in warnings:
        click.echo(warning.shown(recipe), err=True)
    click.echo(plan_text(made, None))
