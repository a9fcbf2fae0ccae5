"""`pivotune replay`: proves that a run comes out the same again."""

from __future__ import annotations

from pathlib import Path

import click

from .options import json_option, print_json, say, set_option


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder of the second run [RUN-replay].")
@set_option
@json_option
@click.pass_context
def replay(ctx: click.Context, run: Path, out: Path | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Run the recipe of RUN again elsewhere and compare every step and file; name the first that differs.

    Exit code 1 when something differs.
    """
    from ..run.replay import replay as run_again
    from ..stages import STAGES

    result = run_again(run, STAGES, out=out, progress=say, bar=not as_json, overrides=overrides)
    if as_json:
        told = {"folder": str(result.folder), "same": not result.differences, "differences": result.differences}
        print_json({**told, "inputs": result.inputs, "steps": result.steps, "files": result.files})
    else:
        for line in result.inputs:
            click.echo(f"input changed: {line}")
        if result.differences:
            click.echo(f"First difference: {result.differences[0]}")
            click.echo(f"Different in {len(result.differences)} place(s); second run: {result.folder}")
        else:
            click.echo(f"The same: {result.steps} steps and {result.files} files, byte for byte. {result.folder}")
    ctx.exit(1 if result.differences else 0)
