"""Options shared by several commands."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


def complete_recipe(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Shell completion: shipped recipes and files."""
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
    help="Override a key of the recipe: seed=3, model.base=FOLDER, train.steps=10 (train.2.steps=10 for the second "
    "train stage). Repeatable.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


def vram_option(text: str) -> Callable[[Any], Any]:
    """`--vram`: the memory of a GPU in GB (2^30 bytes), with this help."""

    def finite(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
        if value is not None and value != value:
            raise click.BadParameter("nan is not a number of GB")
        return value

    return click.option("--vram", type=click.FloatRange(1, 10000), metavar="GB", help=text, callback=finite)


def print_json(value: object) -> None:
    """Print an indented JSON document."""
    import json

    from ..console import is_utf8

    click.echo(json.dumps(value, indent=2, ensure_ascii=not is_utf8()))


def echo_progress(text: str) -> None:
    """Print a line to standard error; a closed terminal or pipe does not end the run."""
    with suppress(OSError):
        click.echo(text, err=True)
