"""`pivotune run`: checks a recipe and runs its stages."""

from __future__ import annotations

import json
from pathlib import Path

import click

from .options import json_option, print_json, recipe_argument, say, set_option


@click.command()
@recipe_argument
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder of the run [runs/NAME].")
@set_option
@click.option("--device", help="Where to compute: auto, cuda, cuda:1, mps, xpu, cpu.")
@click.option("--fresh", is_flag=True, help="Begin anew, also where an unfinished run of the recipe could go on.")
@click.option(
    "--from-checkpoint",
    "source",
    type=click.Path(exists=True, path_type=Path),
    help="Begin a new run with what an earlier one reached: its folder, or a checkpoint in it. With more steps and "
    "all else alike it goes on from there; else it takes what fits, and says what.",
)
@click.option("--force", is_flag=True, help="Start even if pre-flight checks fail (disk, memory, truncated captions).")
@json_option
def run(
    recipe: str,
    out: Path | None,
    overrides: tuple[str, ...],
    device: str | None,
    fresh: bool,
    source: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Run a recipe: teach its embeddings, export them, and write a report.

    RECIPE is a file or the name of a recipe that ships (try: quickstart). A run that was stopped or killed goes on
    with the same command, and ends in the same bytes.
    """
    from ..checks.recipe import checked_recipe
    from ..launch import is_main

    if device is not None:
        overrides = (*overrides, f"device={json.dumps(device)}")
    loaded, warnings = checked_recipe(recipe, overrides)
    for warning in warnings if is_main() else ():
        click.echo(warning.shown(recipe), err=True)

    from ..run.runner import run_recipe
    from ..stages import STAGES

    result = run_recipe(loaded, STAGES, out=out, progress=say, bar=not as_json, fresh=fresh, source=source, force=force)
    if not is_main():
        return
    if as_json:
        print_json({"folder": str(result.folder), "report": str(result.report)})
    else:
        click.echo(result.summary)
        click.echo(f"Report: {result.report}")
