"""Entry point of the `pivotune` command: prepares the process before anything is imported or printed."""

from __future__ import annotations

import codecs
import os
import sys


def main() -> None:
    """Prepare the console and run the command line."""
    _use_utf8()
    from ..console import prepare_console
    from .main import main as command

    prepare_console()
    command()


def _use_utf8() -> None:
    """Restart in UTF-8 mode if Python can only use ASCII file names: LC_ALL=C with PYTHONUTF8=0."""
    if codecs.lookup(sys.getfilesystemencoding()).name == "ascii" and sys.executable:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
