"""The `pivotune` command. A command's module is imported when the command is called, so that --help stays quick."""

from __future__ import annotations

import os
import sys
from importlib import import_module

import click

from pivotune import __version__

# name: (module, attribute, line of --help)
COMMANDS: dict[str, tuple[str, str, str]] = {
    "run": ("run", "run", "Run a recipe: teach its embeddings and export them."),
    "replay": ("replay", "replay", "Run a finished run again and compare every file."),
    "check": ("check", "check", "Check recipes; print every problem at once."),
    "plan": ("plan", "plan", "Show what a recipe would do, without doing it."),
    "report": ("report", "report", "Write the report of a run, also while it goes."),
    "new": ("new", "new", "Write a recipe from a template."),
    "tokens": ("tokens", "tokens", "Show how each text encoder splits a text."),
    "schema": ("schema", "schema", "Print a JSON Schema."),
    "inspect": ("convert", "inspect", "Show what a file holds and which programs load it."),
    "unbundle": ("convert", "unbundle", "Take the embeddings out of LoRA files."),
    "bundle": ("convert", "bundle", "Put embeddings into a LoRA file."),
    "retarget": ("convert", "retarget", "Write embeddings for other programs."),
    "rename": ("convert", "rename", "Give an embedding another name."),
    "merge": ("convert", "merge", "Put several files' embeddings into one file."),
    "split": ("convert", "split", "Take a file of many embeddings apart."),
}


class LazyGroup(click.Group):
    """A group that knows its commands' names and help lines without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        loaded = import_module(f".{module}", __package__)
        command: click.Command = getattr(loaded, attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            from ..text import nearest

            guess = nearest(args[0], COMMANDS)
            if guess is not None:
                ctx.fail(f"No such command '{args[0]}'. Did you mean '{guess}'?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


@click.command(cls=LazyGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, help="Print the version; with -v also those of Python and the libraries.")
@click.option("-v", "--verbose", is_flag=True, help="With --version: more, for bug reports.")
@click.pass_context
def pivotune(context: click.Context, version: bool, verbose: bool) -> None:
    """Teach diffusion models new embeddings from TOML recipes, and carry those embeddings between programs.

    Exit codes: 0 done; 1 the input or the run failed, and why is said; 2 wrong usage.
    """
    if version:
        from ..versions import version_lines

        click.echo("\n".join([f"pivotune {__version__}", *(version_lines() if verbose else [])]))
        context.exit()
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(2)


def main() -> None:
    """Run the command line; errors meant for people, and what the system refuses, become a message and exit code 1.

    Others keep their traceback.
    """
    # Before torch is imported: OpenMP's idle threads sleep. Spinning, they take the cores from all else that runs, and
    # from each other: beside one busy process a run took four times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        pivotune(prog_name="pivotune")
    except Exception as error:
        if not _for_people(error):
            raise
        if not _said_elsewhere(error):
            click.echo(f"Error: {_shown(error)}", err=True)
        sys.exit(1)


def _shown(error: Exception) -> str:
    """What an error says, without control characters: names from files and hubs must not steer a terminal."""
    from ..system_errors import system_error_text
    from ..text import printable

    if isinstance(error, UnicodeEncodeError):
        return printable(
            f"a file name with {error.object[error.start : error.end]!a} is not supported by this system's locale "
            f"({sys.getfilesystemencoding()}); set PYTHONUTF8=1"
        )
    if isinstance(error, (OSError, MemoryError)):
        return printable(system_error_text(error))
    return "\n".join(printable(line) for line in str(error).split("\n"))


def _said_elsewhere(error: Exception) -> bool:
    """Whether another process of the run says what this one only passes on."""
    from ..distributed import PeerFailed
    from ..launch import is_main

    return isinstance(error, PeerFailed) and not is_main()


def _for_people(error: Exception) -> bool:
    from ...converters.errors import ConvertError
    from ..errors import RecipeError, StageError

    if isinstance(error, UnicodeEncodeError):  # a path on a system whose file names are not UTF-8
        return error.encoding != "utf-8" and error.encoding == sys.getfilesystemencoding()
    return isinstance(error, (RecipeError, StageError, ConvertError, OSError, MemoryError))
