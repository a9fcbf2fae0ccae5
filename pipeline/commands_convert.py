"""The commands that carry words between files: unbundle, bundle, retarget, rename, merge, split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import click

from ..converters import adding, operations
from ..converters.dialects import WRITABLE
from ..converters.families import family_names
from ..converters.folders import files_in
from ..converters.programs import NAMES
from ..converters.words import Options, without_halves
from .commands_convert_bar import with_bar
from .commands_convert_each import How, each


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
_NAME = click.option("--name", help="Name of the word, instead of the one in the file.")


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
    """Take the words out of LoRA files: the LoRA without them, and a file for each word.

    Without --for and --dialect a word is laid out as ComfyUI reads it, and most others do.
    """
    if targets and dialect:
        raise click.UsageError("Give either --for PROGRAM or --dialect.")
    options = Options(family=family, dialect=dialect)
    each(
        files_in(paths), lambda files, path: operations.unbundle(files, path, out, targets, options), How(**how), paths
    )


@click.command()
@click.argument("lora", metavar="LORA", type=click.Path(path_type=Path))
@click.argument("words", metavar="WORD...", nargs=-1, required=True, type=click.Path(path_type=Path))
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
@click.option("--replace", is_flag=True, help="Let a word take the place of the one of its name in the LoRA.")
@click.option("--drop-outputs", is_flag=True, help="Leave out output vectors, which OneTrainer alone can use.")
@_writes
def bundle(
    lora: Path, words: Sequence[Path], out: Path, targets: Sequence[str], family: str | None, name: str | None,
    replace: bool, drop_outputs: bool, **how: bool,
) -> None:  # fmt: skip
    """Put the words of files into a LoRA file, for AUTOMATIC1111 and SD.Next."""
    options = Options(family=family, name=name, replace=replace, drop_outputs=drop_outputs)
    added = without_halves(files_in(words))
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
    """Write the words of files of any kind for other programs, each in the dialect that the program reads best."""
    if bool(targets) == bool(dialect):
        raise click.UsageError("Give either --for PROGRAM or --dialect.")
    options = Options(family=family, name=name, dialect=dialect)
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
    """Give the word in FILE the name NEW; where there are several, OLD says which.

    Most programs call a word like its file, so the new file is called NEW too, unless --out names it. A LoRA keeps its
    file's name.
    """
    from ..converters import renaming  # with all that judges a file; the other commands do not need it

    each([file], lambda files, path: renaming.rename(files, path, new, out), How(**how), [file])


@click.command()
@_FILES
@_OUT_FILE
@_NAME
@click.option("--drop-outputs", is_flag=True, help="Leave out output vectors, which OneTrainer alone can use.")
@_writes
def merge(paths: Sequence[Path], out: Path, name: str | None, drop_outputs: bool, **how: bool) -> None:
    """Put the words of several files into one: halves of an SDXL word together, several words as a bundle."""
    options = Options(name=name, drop_outputs=drop_outputs)
    found = files_in(paths)
    each(found[:1], lambda files, _: operations.merge(files, found, out, options, with_bar), How(**how), paths)


@click.command()
@_FILES
@_OUT_FOLDER
@_FOR
@_FAMILY
@_writes
def split(paths: Sequence[Path], out: Path, targets: Sequence[str], family: str | None, **how: bool) -> None:
    """Write each word of files that hold many (packs) into a file of its own: the way back from merge."""
    options = Options(family=family)
    found = without_halves(files_in(paths))
    each(found[:1], lambda files, _: operations.split(files, found, out, targets, options), How(**how), paths)


COMMANDS: dict[str, click.Command] = {
    command.name or "": command for command in (unbundle, bundle, retarget, rename, merge, split)
}
