"""Options that several commands share."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


def complete_recipe(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of recipes that ship, and files."""
    from click.shell_completion import CompletionItem

    from ..recipe.document import shipped

    names = [CompletionItem(name) for name in shipped() if name.startswith(incomplete)]
    return [*names, CompletionItem(incomplete, type="file")]


recipe_argument = click.argument("recipe", metavar="RECIPE", shell_complete=complete_recipe)
set_option = click.option(
    "--set",
    "overrides",
    metavar="KEY=VALUE",
    multiple=True,
    help="Change the recipe: seed=3, model.base=FOLDER, train.steps=10 (train.2.steps=10: the second one). Repeatable.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


def print_json(value: object) -> None:
    """One JSON document on standard output, in readable form."""
    import json

    from ..console import is_utf8

    click.echo(json.dumps(value, indent=2, ensure_ascii=not is_utf8()))


def say(text: str) -> None:
    """A line on standard error; a terminal or pipe that has gone away must not end a run."""
    with suppress(OSError):
        click.echo(text, err=True)
