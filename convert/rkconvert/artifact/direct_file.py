"""A file that is written past the page cache, where the file system allows.

A gigabyte copied into the page cache costs the kernel a second or two of a core, several times what quantising it
does; and it pushes out the source, which is read twice. Whole conversions took 16 to 19 s with this and with SHA-256
side by side (sha256.py), and 22 to 35 s without.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os

import numpy as np
import numpy.typing as npt

_BUFFER = 2 << 20  # bytes written at a time
_DIRECT = getattr(os, "O_DIRECT", 0)


class DirectFile:
    """Appends to the empty file ``fd``, which stays the caller's."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._buffer = np.frombuffer(mmap.mmap(-1, _BUFFER), np.uint8)  # begins with a page, as O_DIRECT wants it
        self._filled, self._written = 0, 0
        try:
            self._set_direct(True)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a file system that has no such thing
                raise

    @property
    def size(self) -> int:
        """Bytes appended so far."""
        return self._written + self._filled

    def append(self, data: npt.NDArray[np.uint8]) -> None:
        while len(data):
            n = min(len(data), _BUFFER - self._filled)
            self._buffer[self._filled : self._filled + n] = data[:n]  # NumPy lets other threads run meanwhile
            self._filled, data = self._filled + n, data[n:]
            if self._filled == _BUFFER:
                self._flush()

    def finish(self) -> None:
        """Write what is left."""
        self._set_direct(False)  # it writes whole blocks of the disk only
        self._flush()

    def _flush(self) -> None:
        left = self._buffer[: self._filled].data
        while left:
            n = self._write(left)
            self._written, left = self._written + n, left[n:]
        self._filled = 0

    def _write(self, data: memoryview) -> int:
        try:
            return os.pwrite(self._fd, data, self._written)
        except OSError as error:
            if error.errno != errno.EINVAL or not self._is_direct():
                raise
            self._set_direct(False)  # some file systems say so only now, or want larger blocks
            return os.pwrite(self._fd, data, self._written)

    def _is_direct(self) -> bool:
        return bool(fcntl.fcntl(self._fd, fcntl.F_GETFL) & _DIRECT)

    def _set_direct(self, on: bool) -> None:
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL) & ~_DIRECT
        fcntl.fcntl(self._fd, fcntl.F_SETFL, flags | (_DIRECT if on else 0))
