"""`pivotune check`: every problem of every recipe at once, without loading a model."""

from __future__ import annotations

import click

from .options import json_option, print_json, set_option


@click.command()
@click.argument("recipes", metavar="RECIPE...", nargs=-1, required=True)
@set_option
@json_option
@click.option("--strict", is_flag=True, help="Count warnings as errors.")
@click.pass_context
def check(
    ctx: click.Context, recipes: tuple[str, ...], overrides: tuple[str, ...], as_json: bool, strict: bool
) -> None:
    """Check recipes, pictures and captions; print every problem with its line and the nearest right word.

    RECIPE is a file or the name of a recipe that ships. Exit code 1 when there is an error.
    """
    from pivotune.pipeline.recipe.check import check_recipe

    reports, failed = [], False
    for name in recipes:
        _, problems = check_recipe(name, overrides)
        failed |= any(strict or problem.severity == "error" for problem in problems)
        reports.append({"recipe": name, "problems": [vars(problem) for problem in problems]})
        if not as_json:
            lines = [problem.shown(name) for problem in problems] or [f"{name}: ok"]
            click.echo("\n".join(lines), err=bool(problems))
    if as_json:
        print_json(reports)
    ctx.exit(1 if failed else 0)
