"""One file after another for the commands that write: each whole or not at all, and at the end what became of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import click

from ...converters import adding, operations
from ...converters.atomic import Batch, batch
from ...converters.dialects import WRITABLE
from ...converters.embeddings import ConvertOptions, without_halves
from ...converters.errors import ConvertError, NothingToDo, PlainImage, printable
from ...converters.families import family_names
from ...converters.folders import files_in
from ...converters.programs import NAMES
from ...converters.safetensors_header import no_collector
from ...converters.write import Written, strictly
from .convert_text import as_text, ended, lost_lines, say, with_bar, written_json, written_lines

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
            named = len(paths) == 1 or printable(str(path)) in str(error)  # else: which of them has this embedding?
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


def _writes(command: Callable) -> Callable:
    """The options of every command that writes, given to it as one `how`."""
    for option in (
        click.option("--overwrite", is_flag=True, help="Replace files that exist."),
        click.option("--strict", is_flag=True, help="Fail if anything would be lost, before a file is written."),
        click.option("--dry-run", is_flag=True, help="Check everything and say what would be written."),
        click.option("--json", is_flag=True, help="Print an object a file, for programs."),
    ):
        command = option(command)
    return command


_FILES = click.argument("paths", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
_FOR = click.option(
    "--for", "targets", metavar="PROGRAM", multiple=True, type=click.Choice(NAMES),
    help=f"Write for this program ({', '.join(NAMES)}); may be given more than once, and then each has a folder.",
)  # fmt: skip
_OUT_FOLDER = click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for what is written.")
_OUT_FILE = click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="The .safetensors file to write."
)
_FAMILY = click.option(
    "--family",
    metavar="FAMILY",
    type=click.Choice(family_names()),
    help="Kind of model, where a file leaves it open: " + ", ".join(family_names()) + ".",
)
_DIALECT = click.option(
    "--dialect",
    type=click.Choice(WRITABLE),
    help="Write in this dialect instead of for a program (a1111: its old .pt).",
)
_NAME = click.option("--name", help="Name of the embedding, instead of the one in the file.")


@click.command()
@_FILES
@_OUT_FOLDER
@_FOR
@_DIALECT
@_FAMILY
@_writes
def unbundle(
    paths: Sequence[Path], out: Path, targets: Sequence[str], dialect: str | None, family: str | None, **how: bool
) -> None:
    """Take the embeddings out of LoRA files: the LoRA without them, and a file for each embedding.

    Without --for and --dialect an embedding is laid out as ComfyUI reads it, and most others do.
    """
    if targets and dialect:
        raise click.UsageError("Give either --for PROGRAM or --dialect.")
    options = ConvertOptions(family=family, dialect=dialect)
    each(
        files_in(paths), lambda files, path: operations.unbundle(files, path, out, targets, options), How(**how), paths
    )


@click.command()
@click.argument("lora", metavar="LORA", type=click.Path(path_type=Path))
@click.argument("embeddings", metavar="EMBEDDING...", nargs=-1, required=True, type=click.Path(path_type=Path))
@_OUT_FILE
@click.option(
    "--for",
    "targets",
    metavar="PROGRAM",
    multiple=True,
    type=click.Choice(NAMES),
    help=f"Fail if this program ({', '.join(NAMES)}) would refuse the LoRA, say what it would not use, and what to "
    "type there; may be given more than once. The file is the same for all.",
)
@_FAMILY
@_NAME
@click.option("--replace", is_flag=True, help="Let an embedding take the place of the one of its name in the LoRA.")
@click.option("--drop-outputs", is_flag=True, help="Leave out output vectors, which OneTrainer alone can use.")
@_writes
def bundle(
    lora: Path, embeddings: Sequence[Path], out: Path, targets: Sequence[str], family: str | None, name: str | None,
    replace: bool, drop_outputs: bool, **how: bool,
) -> None:  # fmt: skip
    """Put the embeddings of files into a LoRA file, for AUTOMATIC1111 and SD.Next."""
    options = ConvertOptions(family=family, name=name, replace=replace, drop_outputs=drop_outputs)
    added = without_halves(files_in(embeddings))
    each(
        [lora],
        lambda files, path: adding.bundle(files, path, added, out, targets, options, with_bar),
        How(**how),
        [lora],
    )


@click.command()
@_FILES
@_FOR
@_DIALECT
@_OUT_FOLDER
@_FAMILY
@_NAME
@_writes
def retarget(
    paths: Sequence[Path], targets: Sequence[str], dialect: str | None, out: Path, family: str | None,
    name: str | None, **how: bool,
) -> None:  # fmt: skip
    """Write the embeddings of files of any kind for other programs, each in the dialect that the program reads best."""
    if bool(targets) == bool(dialect):
        raise click.UsageError("Give either --for PROGRAM or --dialect.")
    options = ConvertOptions(family=family, name=name, dialect=dialect)
    found = without_halves(files_in(paths))
    each(found, lambda files, path: operations.retarget(files, path, out, targets, options), How(**how), paths)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("new", metavar="[OLD=]NEW")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder, or .safetensors file, to write; beside FILE if not given."
)
@_writes
def rename(file: Path, new: str, out: Path | None, **how: bool) -> None:
    """Give the embedding in FILE the name NEW; where there are several, OLD says which.

    Most programs call an embedding like its file, so the new file is called NEW too, unless --out names it. A LoRA
    keeps its file's name.
    """
    from ...converters import renaming

    each([file], lambda files, path: renaming.rename(files, path, new, out), How(**how), [file])


@click.command()
@_FILES
@_OUT_FILE
@_NAME
@click.option("--drop-outputs", is_flag=True, help="Leave out output vectors, which OneTrainer alone can use.")
@_writes
def merge(paths: Sequence[Path], out: Path, name: str | None, drop_outputs: bool, **how: bool) -> None:
    """Put the embeddings of several files into one: halves of an SDXL embedding together, several embeddings as a
    bundle.
    """
    options = ConvertOptions(name=name, drop_outputs=drop_outputs)
    found = files_in(paths)
    each(found[:1], lambda files, _: operations.merge(files, found, out, options, with_bar), How(**how), paths)


@click.command()
@_FILES
@_OUT_FOLDER
@_FOR
@_FAMILY
@_writes
def split(paths: Sequence[Path], out: Path, targets: Sequence[str], family: str | None, **how: bool) -> None:
    """Write each embedding of files that hold many (packs) into a file of its own: the way back from merge."""
    options = ConvertOptions(family=family)
    found = without_halves(files_in(paths))
    each(found[:1], lambda files, _: operations.split(files, found, out, targets, options), How(**how), paths)


COMMANDS: dict[str, click.Command] = {
    command.name or "": command for command in (unbundle, bundle, retarget, rename, merge, split)
}


@click.command()
@click.argument("paths", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print an object a file, one on each line.")
def inspect(paths: Sequence[Path], as_json: bool) -> None:
    """Show what files hold, for which family, and which programs load them under which embedding.

    A folder stands for all files in it that may hold embeddings; its ordinary images are passed over.
    """
    from ...converters.folders import files_in
    from ...converters.inspection import inspect as inspected
    from ...converters.inspection import unread

    failed, found = [], files_in(paths)
    for path in with_bar(found):
        try:
            facts = inspected(path)
        except ConvertError as error:
            if isinstance(error, PlainImage) and path not in paths:
                continue
            failed.append(error)
            facts = unread(path, error)
        say(json.dumps(facts) if as_json else as_text(facts))
    ended(failed, len(found))
