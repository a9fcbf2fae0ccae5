"""One file after another for the commands that write: each whole or not at all, and at the end what became of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import click

from ..converters.atomic import Batch, batch
from ..converters.errors import ConvertError, NothingToDo, printable
from ..converters.safetensors_header import no_collector
from ..converters.write import Written, strictly
from .commands_convert_bar import say, with_bar
from .commands_convert_text import ended, lost_lines, written_json, written_lines

Work = Callable[[Batch, Path], list[Written]]


class How(NamedTuple):
    """What all commands that write have in common."""

    overwrite: bool
    strict: bool
    dry_run: bool
    json: bool


def each(paths: Sequence[Path], work: Work, how: How, asked: Sequence[Path]) -> None:
    """One file after another, each whole or not at all; a bad one stops no other, and the exit code tells.

    Files without what is wanted count only where they were `asked` for by name, not where they lie in a folder.
    """
    claimed: set[str] = set()
    failed, count, passed = [], 0, 0
    for path in with_bar(paths):
        try:
            places = batch(overwrite=how.overwrite, dry=how.dry_run, claimed=claimed, repeatable=True)
            with no_collector(True), places as files:
                written = work(files, path)
                if how.strict:
                    strictly(written)
                for line in lost_lines(written):  # said while no file is in its place yet
                    say(line, err=True)
        except ConvertError as error:
            if isinstance(error, NothingToDo) and path not in asked:
                passed += 1
                continue
            named = len(paths) == 1 or printable(str(path)) in str(error)  # else: which of them has this word?
            failed.append(error if named else ConvertError(f"{path}: {error}"))
            if how.json:
                say(json.dumps({"path": str(path), "written": [], "error": str(failed[-1])}))
            continue
        count += len(written)
        say(written_json(path, written) if how.json else "\n".join(written_lines(written)))
    if len(paths) > 1 and not how.json:
        done = f"{count} files {'would be ' if how.dry_run else ''}written from {len(paths) - len(failed) - passed}"
        click.echo(f"{done}; nothing to do in {passed}" if passed else done)
    ended(failed, len(paths))
