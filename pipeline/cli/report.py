"""`pivotune report`: makes the report of a run anew, or keeps it up to date while the run goes."""

from __future__ import annotations

from pathlib import Path

import click

from .options import say


@click.command()
@click.argument("run", metavar="RUN", type=click.Path(file_okay=False, path_type=Path))
@click.option("--follow", is_flag=True, help="Write it again and again until the run is over; Ctrl-C ends only this.")
@click.option("--every", type=click.IntRange(1, 3600), default=5, show_default=True, help="Seconds between two looks.")
def report(run: Path, follow: bool, every: int) -> None:
    """Write report.html of the run in the folder RUN, whatever state it is in: at work, finished, failed or killed.

    With --follow an open page loads itself again while the run goes.
    """
    from ..records import read_manifest
    from ..run_folder import require_own_files

    read_manifest(run)
    require_own_files(run)
    if follow:
        from ..report.page import follow as keep_up

        path = keep_up(run, every, say)
    else:
        from ..report.page import write_report

        path = write_report(run)
    click.echo(f"Report: {path}")
