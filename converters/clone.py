"""Bytes that go from file to file inside the system: shared where it can (XFS, Btrfs, bcachefs), else copied.

Blocks are shared whole: a range of one file can stand in another only if both begin at the same place within a block,
so a header is padded until they do.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import BinaryIO

BLOCK = 4096
SMALLEST = 1 << 20  # bytes; less is copied as quickly
AT_ONCE = 1 << 26  # bytes that the system copies before anybody can interrupt it
_FICLONERANGE = 0x4020940D  # linux/fs.h: _IOW(0x94, 13, struct file_clone_range)
_RESERVE = 0x4030582A  # linux/falloc.h: FS_IOC_RESVSP64, _IOW('X', 42, struct space_resv)
_CANNOT = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM, errno.ETXTBSY)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def cloned(target: BinaryIO, at: int, source: int, offset: int, length: int) -> bool:
    """Let `length` bytes of `target` from `at` on share the blocks of descriptor `source` from `offset` on.

    All three in whole blocks. False, and nothing done, where the file system cannot. Raises OSError, as a full disk.
    """
    if not sys.platform.startswith("linux"):
        return False
    import fcntl
    import struct

    try:
        fcntl.ioctl(target.fileno(), _FICLONERANGE, struct.pack("qQQQ", source, offset, length, at))
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        return False
    return True


def _reserve(target: BinaryIO, at: int, length: int) -> None:
    """Have the blocks for `length` bytes from `at` on chosen in one go, which spares a quarter of a copy's work.

    Where a file system cannot, posix_fallocate would write zeros; this does nothing. Nor does it where the system will
    not (SELinux), or is disturbed (a signal, on a tmpfs of Linux before 6.11). Raises OSError for a full disk.
    """
    if not sys.platform.startswith("linux"):
        return
    import fcntl
    import struct

    try:
        fcntl.ioctl(target.fileno(), _RESERVE, struct.pack("hhqqiI4i", 0, os.SEEK_SET, at, length, 0, 0, 0, 0, 0, 0))
    except OSError as error:
        if error.errno in _FULL:
            raise


def copied(target: BinaryIO, source: int, offset: int, length: int) -> int:
    """Let the system write bytes of descriptor `source` from `offset` on where `target` stands, and go on behind them.

    How many it has written: fewer than `length` where the source ends before, or the system cannot do the rest.
    Raises OSError, as a full disk.
    """
    if not hasattr(os, "copy_file_range"):
        return 0
    target.flush()
    begin, done = target.tell(), 0
    _reserve(target, begin, length)
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


def padding(at: int, offset: int) -> int:
    """Bytes to put before `at` so that it falls on the same place within a block as `offset`."""
    return (offset - at) % BLOCK
