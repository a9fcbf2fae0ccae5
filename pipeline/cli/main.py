"""The `pivotune` command. Modules of commands are imported when they are called, so that --help is fast."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

import click

from pivotune import __version__

# name: (module, attribute, help line)
COMMANDS: dict[str, tuple[str, str, str]] = {
    "run": ("run", "run", "Run a recipe: train its embeddings and export them."),
    "replay": ("replay", "replay", "Repeat a finished run and compare every file."),
    "check": ("check", "check", "Check recipes and print all problems at once."),
    "plan": ("plan", "plan", "Show what a recipe would do, without running it."),
    "report": ("report", "report", "Write the report of a run, finished or in progress."),
    "new": ("new", "new", "Write a recipe from a template."),
    "tokens": ("tokens", "tokens", "Show how each text encoder splits a text."),
    "schema": ("schema", "schema", "Print a JSON Schema."),
    "inspect": ("convert", "inspect", "Show what a file contains and which programs load it."),
    "unbundle": ("convert", "unbundle", "Take the embeddings out of LoRA files."),
    "bundle": ("convert", "bundle", "Bundle embeddings into a LoRA file."),
    "retarget": ("convert", "retarget", "Convert embeddings for other programs."),
    "rename": ("convert", "rename", "Rename an embedding."),
    "merge": ("convert", "merge", "Merge the embeddings of several files into one file."),
    "split": ("convert", "split", "Split a file of many embeddings into one file each."),
    "doctor": ("doctor", "doctor", "Show versions, devices, optional packages and free disk space."),
    "comfyui": ("comfyui", "comfyui", "Install nodes for ComfyUI."),
}


class LazyGroup(click.Group):
    """A command group that lists its commands without importing them."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. Ctrl-C where nothing else catches it ends it with one line and the exit code of shells."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("Stopped by Ctrl-C", err=True)
            ctx.exit(130)

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
@click.option(
    "--version", is_flag=True, help="Print the version; with -v also the versions of Python and the libraries."
)
@click.option("-v", "--verbose", is_flag=True, help="With --version: all versions, for bug reports.")
@click.pass_context
def pivotune(context: click.Context, version: bool, verbose: bool) -> None:
    """Train embeddings for diffusion models from TOML recipes, and convert embedding files between programs.

    Exit codes: 0 success; 1 error in the input or failed run; 2 wrong usage; 130 stopped by Ctrl-C, 143 by SIGTERM.
    """
    if version:
        from ..versions import version_lines

        click.echo("\n".join([f"pivotune {__version__}", *(version_lines() if verbose else [])]))
        context.exit()
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(2)


def main() -> None:
    """Run the command line. Errors for users and system errors become a message and exit code 1.

    A run that a signal stopped is no error: its message says so, and the exit code is that of shells. Any other
    exception keeps its traceback: it is a bug.
    """
    # Before torch is imported: idle OpenMP threads sleep instead of spinning. Spinning threads slow down every other
    # process and each other: beside one busy process a run took four times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        pivotune(prog_name="pivotune")
    except Exception as error:
        if not _is_for_users(error):
            raise
        stopped = _stopped_code(error)
        if not _is_reported_by_main(error):
            click.echo(_error_text(error) if stopped else f"Error: {_error_text(error)}", err=True)
        sys.exit(stopped or 1)


def _stopped_code(error: Exception) -> int | None:
    """The exit code of a run that a signal stopped; None for errors."""
    from ..run.signals import Stopped

    return error.exit_code if isinstance(error, Stopped) else None


def _error_text(error: Exception) -> str:
    """The message of an error, without control characters, which could come from file names or hubs."""
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


def _is_reported_by_main(error: Exception) -> bool:
    """Whether the main process of a distributed run reports this error or stop."""
    from ..distributed import PeerFailed
    from ..launch import is_main

    return (isinstance(error, PeerFailed) or _stopped_code(error) is not None) and not is_main()


def _is_for_users(error: Exception) -> bool:
    from ...converters.errors import ConvertError
    from ..errors import RecipeError, StageError

    if isinstance(error, UnicodeEncodeError):  # a path, where file names are not UTF-8
        return error.encoding != "utf-8" and error.encoding == sys.getfilesystemencoding()
    return isinstance(error, (RecipeError, StageError, ConvertError, OSError, MemoryError))
