"""Bytes that the system copies from file to file, where it can."""

from __future__ import annotations

import errno
import os
from typing import BinaryIO

SMALLEST = 1 << 20  # bytes; less is copied as quickly
AT_ONCE = 1 << 26  # bytes that the system copies before anybody can interrupt it
_CANNOT = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM, errno.ETXTBSY)


def copied(target: BinaryIO, source: int, offset: int, length: int) -> int:
    """Let the system write bytes of descriptor `source` from `offset` on to where `target` is, and move it behind them.

    How many it has written: fewer than `length` where the source ends before, or the system cannot do the rest.
    Raises OSError, as a full disk.
    """
    if not hasattr(os, "copy_file_range"):  # Windows, macOS
        return 0
    target.flush()
    begin, done = target.tell(), 0
    while done < length:
        try:
            count = os.copy_file_range(
                source, target.fileno(), min(length - done, AT_ONCE), offset + done, begin + done
            )
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            break
        if not count:
            break
        done += count
    target.seek(begin + done)
    return done
