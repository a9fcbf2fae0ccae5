"""A bar for a long row of files, and lines that are printed above it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path

import click

FEWEST = 20  # files that are worth a bar


def with_bar(paths: Sequence[Path]) -> Iterable[Path]:
    """The paths; while they are gone through, a bar on standard error, if they are many and it is a terminal."""
    if len(paths) < FEWEST or sys.stderr is None or not sys.stderr.isatty():
        return paths
    from tqdm import tqdm

    return tqdm(paths, unit="file", leave=False)


def say(line: str, *, err: bool = False) -> None:
    """Print a line, above the bar if there is one."""
    bars = sys.modules.get("tqdm")
    with bars.tqdm.external_write_mode() if bars else nullcontext():
        click.echo(line, err=err)
