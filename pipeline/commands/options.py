"""Options that several commands share."""

from __future__ import annotations

import click

recipe_argument = click.argument("recipe", metavar="RECIPE")
set_option = click.option(
    "--set",
    "overrides",
    metavar="PLACE=VALUE",
    multiple=True,
    help="Change the recipe: seed=3, model.base=FOLDER, train.steps=10, stage.3.steps=10 (counted from 1). Repeatable.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


def print_json(value: object) -> None:
    """One JSON document on standard output, in readable form."""
    import json

    click.echo(json.dumps(value, indent=2, ensure_ascii=False))
