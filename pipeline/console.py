"""Standard streams that accept any text: missing characters are escaped, and a closed pipe does not end the command."""

from __future__ import annotations

import codecs
import errno
import io
import os
import signal
import sys
from contextlib import suppress
from typing import BinaryIO, cast

HANDLER = "pivotune.readable"
_READER_GONE = errno.EINVAL if os.name == "nt" else errno.EPIPE
# ASCII substitutes for characters in our messages that many code pages lack.
_SUBSTITUTES = {
    "→": "->", "←": "<-", "…": "...", "–": "-", "—": "-", "·": "|", "×": "x", "•": "*", "’": "'", "‘": "'", "“": '"',
    "”": '"', "≤": "<=", "≥": ">=", "✓": "ok",
}  # fmt: skip


def prepare_console() -> None:
    """Make the standard streams accept any text; Ctrl-Break (Windows) acts as Ctrl-C.

    Without this, a command fails at the first non-ASCII character on a Windows code page or with LANG=C.
    """
    codecs.register_error(HANDLER, _escape_missing)
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # pythonw, or closed by the caller: keep its descriptor from other files
            null = open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8")  # noqa: SIM115 (until the end)
            setattr(sys, name, null)
        elif name != "stdin":
            setattr(sys, name, _with_error_handler(stream))
    if hasattr(signal, "SIGBREAK"):  # Windows: Ctrl-Break, and a console window that is closed
        signal.signal(signal.SIGBREAK, lambda number, frame: signal.raise_signal(signal.SIGINT))


def is_utf8() -> bool:
    """Whether standard output can encode every character."""
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    return codecs.lookup(encoding).name == "utf-8"


def _with_error_handler(stream: object) -> object:
    """The stream with our error handler, on a file that tolerates a closed pipe; other objects unchanged."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    raw = getattr(stream.buffer, "raw", stream.buffer)  # no buffer with PYTHONUNBUFFERED
    if type(raw) is not io.FileIO:  # a Windows console has its own class
        stream.reconfigure(errors=HANDLER)
        return stream
    stream.flush()
    file = _PipeFile(raw.fileno(), "wb", closefd=False)
    return io.TextIOWrapper(
        cast(BinaryIO, file) if raw is stream.buffer else io.BufferedWriter(file),
        stream.encoding, HANDLER, line_buffering=stream.line_buffering, write_through=stream.write_through,
    )  # fmt: skip


class _PipeFile(io.FileIO):
    """A file whose reader may close it early (`| head`): the rest is dropped and the command continues."""

    def write(self, data: object) -> int:
        """As FileIO; after a failed write the rest goes to the null device. Raises OSError once for a full disk."""
        try:
            return super().write(cast(bytes, data))
        except OSError as error:
            with suppress(OSError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self.fileno())
                os.close(null)
            if error.errno != _READER_GONE:
                raise
            return memoryview(cast(bytes, data)).nbytes


def _escape_missing(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    shown = (_SUBSTITUTES.get(char) or char.encode("ascii", "backslashreplace").decode() for char in text)
    return "".join(shown), error.end
