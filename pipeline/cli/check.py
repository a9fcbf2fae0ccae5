"""`pivotune check`: all problems of recipes at once, without loading a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..text import count_of, first_few
from .options import complete_recipe, json_option, print_json, set_option

if TYPE_CHECKING:
    from ..checks.recipe import Checked


@click.command()
@click.argument("recipes", metavar="RECIPE...", nargs=-1, required=True, shell_complete=complete_recipe)
@set_option
@json_option
@click.option("--strict", is_flag=True, help="Treat warnings as errors.")
@click.pass_context
def check(
    ctx: click.Context, recipes: tuple[str, ...], overrides: tuple[str, ...], as_json: bool, strict: bool
) -> None:
    """Check recipes, images and captions. Prints all problems with line, key, cause and fix.

    RECIPE is a file or the name of a shipped recipe. Exit code 1 if there are errors.
    """
    from ..checks.recipe import check_recipe

    reports, failed = [], False
    for name in recipes:
        checked = check_recipe(name, overrides, tokens=True)
        failed |= checked.failed or (strict and bool(checked.problems))
        reports.append(_report(name, checked))
        if not as_json:
            for problem in checked.problems:
                click.echo(problem.shown(name), err=True)
            if not checked.failed:
                click.echo(f"{name}: ok{_summary(checked)}")
    if as_json:
        print_json(reports)
    ctx.exit(1 if failed else 0)


def _report(name: str, checked: Checked) -> dict[str, Any]:
    return {
        "recipe": name,
        "ok": not checked.failed,
        "problems": [{**vars(problem), "file": problem.file or name} for problem in checked.problems],
        "images": checked.images,
        "captions": checked.captions,
        "captions_with": checked.captions_with,
    }


def _summary(checked: Checked) -> str:
    """Images, captions, and the share of captions of each embedding: ` (10 images, 10 captions; <emblem> in 100 %)`."""
    if not checked.captions:
        return ""
    counts = checked.captions_with.items()
    shares = [f"{embedding} in {_share(count, checked.captions)} %" for embedding, count in counts]
    found = f"{count_of(checked.images, 'image')}, {count_of(checked.captions, 'caption')}"
    return f" ({found}; {first_few(shares, 8, 'embedding')})"


def _share(part: int, whole: int) -> str:
    return "<1" if 0 < 100 * part < whole else f"{100 * part / whole:.0f}"
