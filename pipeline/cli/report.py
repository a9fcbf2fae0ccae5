"""`pivotune report`: writes the report of a run, and with --follow keeps it up to date."""

from __future__ import annotations

from pathlib import Path

import click

from .options import echo_progress


@click.command()
@click.argument("run", metavar="RUN", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--follow", is_flag=True, help="Keep the report up to date until the run ends. Ctrl-C stops only the report."
)
@click.option(
    "--every", type=click.IntRange(1, 3600), default=5, show_default=True, help="Seconds between updates with --follow."
)
def report(run: Path, follow: bool, every: int) -> None:
    """Write report.html for the run in folder RUN, whether it is running, finished, failed or killed.

    With --follow an open page reloads itself while the run is in progress.
    """
    from ..records import read_manifest
    from ..run_folder import require_own_files

    read_manifest(run)
    require_own_files(run)
    if follow:
        from ..report.page import follow as follow_run

        path = follow_run(run, every, echo_progress)
    else:
        from ..report.page import write_report

        path = write_report(run, warn=lambda text: echo_progress(f"warning: {text}"))
    click.echo(f"Report: {path}")
