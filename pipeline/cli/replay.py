"""`pivotune replay`: repeats a run and compares the results."""

from __future__ import annotations

from pathlib import Path

import click

from ..text import count_of, first_lines
from .options import echo_progress, json_option, print_json, set_option

SHOWN = 10  # differences that are printed


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "-o", "--out", type=click.Path(file_okay=False, path_type=Path), help="Folder of the second run [RUN-replay]."
)
@set_option
@json_option
@click.pass_context
def replay(ctx: click.Context, run: Path, out: Path | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Repeat the run in folder RUN in another folder and compare every step and file. Prints the first differences.

    Exit code 1 if anything differs.
    """
    from ..run.replay import replay as replay_run
    from ..stages import STAGES

    result = replay_run(run, STAGES, out=out, progress=echo_progress, bar=not as_json, overrides=overrides)
    if as_json:
        result_json = {"folder": str(result.folder), "same": not result.differences, "differences": result.differences}
        print_json({**result_json, "inputs": result.inputs, "steps": result.steps, "files": result.files})
    else:
        for line in result.inputs:
            click.echo(f"input changed: {line}")
        if result.differences:
            for line in first_lines(result.differences, SHOWN):
                click.echo(f"different: {line}")
            click.echo(f"second run: {result.folder}")
        else:
            click.echo(
                f"Identical: {count_of(result.steps, 'step')} and {count_of(result.files, 'file')}, byte for byte; "
                f"second run: {result.folder}"
            )
    ctx.exit(1 if result.differences else 0)
