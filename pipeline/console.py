"""Output that works on every console: characters it lacks are escaped, and a closed one ends no command."""

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
# Characters of our own messages that many code pages lack, in ASCII.
_ALIKE = {
    "→": "->", "←": "<-", "…": "...", "–": "-", "—": "-", "·": "|", "×": "x", "•": "*", "’": "'", "‘": "'", "“": '"',
    "”": '"', "≤": "<=", "≥": ">=", "✓": "ok",
}  # fmt: skip


def prepare_console() -> None:
    """Let this process's standard streams take any text; Ctrl-Break (Windows) acts as Ctrl-C.

    Without it, a code page of Windows or LANG=C fails a command at its first arrow or non-ASCII name.
    """
    codecs.register_error(HANDLER, _readable)
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # pythonw, or closed by the caller: no other file may get its descriptor
            null = open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8")  # noqa: SIM115 (until the end)
            setattr(sys, name, null)
        elif name != "stdin":
            setattr(sys, name, _prepared(stream))
    if hasattr(signal, "SIGBREAK"):  # Windows: Ctrl-Break, and a console window that is closed
        signal.signal(signal.SIGBREAK, lambda number, frame: signal.raise_signal(signal.SIGINT))


def is_utf8() -> bool:
    """Whether standard output can encode every character."""
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    return codecs.lookup(encoding).name == "utf-8"


def _prepared(stream: object) -> object:
    """The stream with our error handler, on a file whose reader may close it early; other objects stay as they are."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    raw = getattr(stream.buffer, "raw", stream.buffer)  # PYTHONUNBUFFERED leaves the buffer out
    if type(raw) is not io.FileIO:  # a Windows console has a class of its own
        stream.reconfigure(errors=HANDLER)
        return stream
    stream.flush()
    file = _Closable(raw.fileno(), "wb", closefd=False)
    return io.TextIOWrapper(
        cast(BinaryIO, file) if raw is stream.buffer else io.BufferedWriter(file),
        stream.encoding, HANDLER, line_buffering=stream.line_buffering, write_through=stream.write_through,
    )  # fmt: skip


class _Closable(io.FileIO):
    """A file whose reader may close it early (`| head`): the rest is dropped, and the command still does its work."""

    def write(self, data: object) -> int:
        """As FileIO does; what cannot be written makes it the null device. Raises OSError for a full disk, once."""
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


def _readable(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_ALIKE.get(char) or char.encode("ascii", "backslashreplace").decode() for char in text), error.end
