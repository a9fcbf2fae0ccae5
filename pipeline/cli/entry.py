"""The way into the `pivotune` command: what its process needs before anything is imported or printed."""

from __future__ import annotations

import codecs
import os
import sys


def main() -> None:
    """Prepare the console, run the command line and end the process with its exit code."""
    _use_utf8()
    from ..console import prepare_console
    from .main import main as command

    prepare_console()
    command()


def _use_utf8() -> None:
    """Start again in UTF-8 mode where Python can only use ASCII file names: LC_ALL=C with PYTHONUTF8=0."""
    if codecs.lookup(sys.getfilesystemencoding()).name == "ascii" and sys.executable:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
