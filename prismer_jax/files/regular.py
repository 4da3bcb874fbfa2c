"""Files of users, opened without ever waiting: where a name is a pipe's or a device's, no end may come."""

from __future__ import annotations

import errno
import os
import stat
from typing import BinaryIO


def opened(path: str | os.PathLike) -> BinaryIO:
    """Returns a regular file, or what a link to one leads to, opened for reading bytes; a number is no path.

    Raises:
      OSError, TypeError: it cannot be opened, or is a pipe, a socket or a device; it is no path.
    """
    file = open(os.fspath(path), "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "Not a regular file", os.fspath(path))
    return file


def read(path: str | os.PathLike) -> bytes:
    """Returns the bytes of a regular file; raises OSError as `opened` does."""
    with opened(path) as file:
        return file.read()
