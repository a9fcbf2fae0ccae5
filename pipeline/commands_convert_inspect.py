"""The command that says what files hold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from ..converters.errors import ConvertError, PlainPicture
from .commands_convert_bar import say, with_bar
from .commands_convert_text import as_text, ended


@click.command()
@click.argument("paths", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print an object a file, one on each line.")
def inspect(paths: Sequence[Path], as_json: bool) -> None:
    """Show what files hold, for which family, and which programs load them under which word.

    A folder stands for all files in it that may hold words; its ordinary pictures are passed over.
    """
    from ..converters.folders import files_in
    from ..converters.inspection import inspect as inspected
    from ..converters.inspection import unread

    failed, found = [], files_in(paths)
    for path in with_bar(found):
        try:
            facts = inspected(path)
        except ConvertError as error:
            if isinstance(error, PlainPicture) and path not in paths:
                continue
            failed.append(error)
            facts = unread(path, error)
        say(json.dumps(facts) if as_json else as_text(facts))
    ended(failed, len(found))
