"""The commands for embedding files: inspect, retarget, unbundle, bundle, rename, merge, split."""

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
from ...converters.errors import ConvertError, NothingToDo, PlainImage, count_of, printable
from ...converters.families import family_names
from ...converters.folders import files_in, subfolder_of
from ...converters.programs import NAMES
from ...converters.safetensors_header import no_collector
from ...converters.write import Written, strictly
from .convert_text import as_text, echo, lost_lines, raise_failures, with_bar, written_json, written_lines

Work = Callable[[Batch, Path], list[Written]]


class WriteOptions(NamedTuple):
    """Options of all commands that write files."""

    overwrite: bool
    strict: bool
    dry_run: bool
    json: bool


def convert_files(paths: Sequence[Path], work: Work, options: WriteOptions, named: Sequence[Path]) -> None:
    """Convert one file after another, each completely or not at all. A failure does not stop the others.

    A file with nothing to convert is a failure only if it was `named` itself, not if its folder was.
    """
    claimed: set[str] = set()
    failed, count, skipped = [], 0, 0
    for path in with_bar(paths):
        try:
            targets = batch(overwrite=options.overwrite, dry=options.dry_run, claimed=claimed, repeatable=True)
            with no_collector(True), targets as files:
                written = work(files, path)
                if options.strict:
                    strictly(written)
                for line in lost_lines(written):  # printed before any file is written
                    echo(line, err=True)
        except ConvertError as error:
            if isinstance(error, NothingToDo) and path not in named:
                skipped += 1
                continue
            has_path = len(paths) == 1 or printable(str(path)) in str(error)
            failed.append(error if has_path else ConvertError(f"{path}: {error}"))
            if options.json:
                echo(json.dumps({"path": str(path), "written": [], "error": str(failed[-1])}))
            continue
        count += len(written)
        echo(written_json(path, written) if options.json else "\n".join(written_lines(written)))
    if len(paths) > 1 and not options.json:
        done = (
            f"{count_of(count, 'file')} {'would be ' if options.dry_run else ''}written from "
            f"{len(paths) - len(failed) - skipped}"
        )
        click.echo(f"{done}; nothing to do in {skipped}" if skipped else done)
    raise_failures(failed, len(paths))


def _write_options(command: Callable) -> Callable:
    """Adds the options of `WriteOptions` to a command."""
    for option in (
        click.option("--overwrite", is_flag=True, help="Overwrite existing files."),
        click.option("--strict", is_flag=True, help="Fail before writing if anything would be lost."),
        click.option(
            "--dry-run", is_flag=True, help="Check everything and print what would be written, without writing."
        ),
        click.option("--json", is_flag=True, help="Print JSON for programs, one object per file."),
    ):
        command = option(command)
    return command


_FILES = click.argument("paths", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
_FOR = click.option(
    "--for", "targets", metavar="PROGRAM", multiple=True, type=click.Choice(NAMES),
    help=f"Target program ({', '.join(NAMES)}). Repeatable; then each program gets its own folder.",
)  # fmt: skip
_OUT_FOLDER = click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Output folder.")
_OUT_FILE = click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path), help="Output file (.safetensors)."
)
_FAMILY = click.option(
    "--family",
    metavar="FAMILY",
    type=click.Choice(family_names()),
    help="Model family, for files that do not determine it: " + ", ".join(family_names()) + ".",
)
_DIALECT = click.option(
    "--dialect",
    type=click.Choice(WRITABLE),
    help="Output dialect instead of a program (a1111: its old .pt format).",
)
_NAME = click.option("--name", help="Name of the embedding, instead of the name in the file.")


@click.command()
@_FILES
@_OUT_FOLDER
@_FOR
@_DIALECT
@_FAMILY
@_write_options
def unbundle(
    paths: Sequence[Path],
    out: Path,
    targets: Sequence[str],
    dialect: str | None,
    family: str | None,
    **write_options: bool,
) -> None:
    """Take the embeddings out of LoRA files: writes the LoRA without them, and one file per embedding.

    Without --for and --dialect the files are in the dialect of ComfyUI, which most programs read.
    """
    if targets and dialect:
        raise click.UsageError("Give either --for PROGRAM or --dialect.")
    options = ConvertOptions(family=family, dialect=dialect)
    convert_files(
        files_in(paths),
        lambda files, path: operations.unbundle(files, path, out, targets, options),
        WriteOptions(**write_options),
        paths,
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
    help=f"Check that this program ({', '.join(NAMES)}) loads the file, and print what it would ignore and the "
    "trigger to type. Repeatable. The file is the same for all programs.",
)
@_FAMILY
@_NAME
@click.option("--replace", is_flag=True, help="Replace embeddings of the same name in the LoRA.")
@click.option("--drop-outputs", is_flag=True, help="Drop output vectors, which only OneTrainer uses.")
@_write_options
def bundle(
    lora: Path, embeddings: Sequence[Path], out: Path, targets: Sequence[str], family: str | None, name: str | None,
    replace: bool, drop_outputs: bool, **write_options: bool,
) -> None:  # fmt: skip
    """Bundle embeddings into a LoRA file, for AUTOMATIC1111 and SD.Next."""
    options = ConvertOptions(family=family, name=name, replace=replace, drop_outputs=drop_outputs)
    added = without_halves(files_in(embeddings))
    convert_files(
        [lora],
        lambda files, path: adding.bundle(files, path, added, out, targets, options, with_bar),
        WriteOptions(**write_options),
        [lora],
    )


@click.command()
@_FILES
@_FOR
@_DIALECT
@_OUT_FOLDER
@_FAMILY
@_NAME
@_write_options
def retarget(
    paths: Sequence[Path], targets: Sequence[str], dialect: str | None, out: Path, family: str | None,
    name: str | None, **write_options: bool,
) -> None:  # fmt: skip
    """Convert embedding files for other programs, each in the dialect that the program reads best."""
    if bool(targets) == bool(dialect):
        raise click.UsageError("Give either --for PROGRAM or --dialect.")
    options = ConvertOptions(family=family, name=name, dialect=dialect)
    found = without_halves(files_in(paths))
    convert_files(
        found,
        lambda files, path: operations.retarget(
            files, path, out, targets, options._replace(subfolder=subfolder_of(path, paths))
        ),
        WriteOptions(**write_options),
        paths,
    )


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("new", metavar="[OLD=]NEW")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="Output folder or .safetensors file. Default: the folder of FILE.",
)
@_write_options
def rename(file: Path, new: str, out: Path | None, **write_options: bool) -> None:
    """Rename the embedding in FILE to NEW; if there are several, give OLD=NEW.

    Most programs take an embedding's name from its file, so the output file is named NEW too, unless --out names it.
    A LoRA keeps its file name.
    """
    from ...converters import renaming

    convert_files(
        [file], lambda files, path: renaming.rename(files, path, new, out), WriteOptions(**write_options), [file]
    )


@click.command()
@_FILES
@_OUT_FILE
@_NAME
@click.option("--drop-outputs", is_flag=True, help="Drop output vectors, which only OneTrainer uses.")
@_write_options
def merge(paths: Sequence[Path], out: Path, name: str | None, drop_outputs: bool, **write_options: bool) -> None:
    """Merge the embeddings of several files into one: the halves of an SDXL embedding, or several as a pack."""
    options = ConvertOptions(name=name, drop_outputs=drop_outputs)
    found = files_in(paths)
    convert_files(
        found[:1],
        lambda files, _: operations.merge(files, found, out, options, with_bar),
        WriteOptions(**write_options),
        paths,
    )


@click.command()
@_FILES
@_OUT_FOLDER
@_FOR
@_FAMILY
@_write_options
def split(paths: Sequence[Path], out: Path, targets: Sequence[str], family: str | None, **write_options: bool) -> None:
    """Split files of many embeddings (packs) into one file per embedding; the reverse of merge."""
    options = ConvertOptions(family=family)
    found = without_halves(files_in(paths))
    convert_files(
        found[:1],
        lambda files, _: operations.split(files, found, out, targets, options),
        WriteOptions(**write_options),
        paths,
    )


COMMANDS: dict[str, click.Command] = {
    command.name or "": command for command in (unbundle, bundle, retarget, rename, merge, split)
}


@click.command()
@click.argument("paths", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs, one object per file.")
def inspect(paths: Sequence[Path], as_json: bool) -> None:
    """Show what files contain, their model family, which programs load them, and the trigger to type there.

    A folder stands for all files in it that may contain embeddings; ordinary images are skipped.
    """
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
            if not as_json:  # printed once, at the end
                continue
            facts = unread(path, error)
        echo(json.dumps(facts) if as_json else as_text(facts))
    raise_failures(failed, len(found))
