"""`pivotune run`: checks a recipe and runs its stages."""

from __future__ import annotations

import json
from pathlib import Path

import click

from .options import echo_progress, json_option, print_json, recipe_argument, set_option


@click.command()
@recipe_argument
@click.option("-o", "--out", type=click.Path(file_okay=False, path_type=Path), help="Run folder [runs/NAME].")
@set_option
@click.option("--device", help="Device: auto, cuda, cuda:1, mps, xpu, cpu. Overrides the recipe.")
@click.option("--fresh", is_flag=True, help="Start over even if an unfinished run of this recipe could be resumed.")
@click.option(
    "--from-checkpoint",
    "source",
    type=click.Path(exists=True, path_type=Path),
    help="Warm start from an earlier run: its folder or a checkpoint. If only the number of steps is larger, training "
    "continues at the checkpoint's step; otherwise matching weights are loaded and training starts at step 1.",
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
    """Run a recipe: train its embeddings, export them, and write a report.

    RECIPE is a file or the name of a shipped recipe (try: quickstart). The same command resumes a run that was
    stopped or killed, with the same result.
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

    result = run_recipe(
        loaded, STAGES, out=out, progress=echo_progress, bar=not as_json, fresh=fresh, source=source, force=force
    )
    if not is_main():
        return
    if as_json:
        print_json({"folder": str(result.folder), "report": str(result.report)})
    else:
        click.echo(result.summary)
        click.echo(f"Report: {result.report}")
