"""The file ``model.sim.gguf`` as it is being written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np

from rk3588.errors import TargetError

from .direct_file import DirectFile
from .layout import Artifact
from .sha256 import Bytes, Sha256


class ArtifactFile:
    """A file that grows from its first byte to its last. Its size is known, and the space taken, from the beginning."""

    def __init__(self, path: Path, artifact: Artifact, header: bytes) -> None:
        self.path, self.artifact = path, artifact
        self.header: Bytes = np.frombuffer(header, np.uint8)
        self.sha256 = Sha256()  # of the file; whoever appends bytes adds them here, too
        size = len(header) + artifact.data_bytes
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            os.posix_fallocate(self._fd, 0, size)  # no space is found out now and not at the end
            self._file = DirectFile(self._fd)
        except OSError as error:
            self.close()
            raise write_error(error, path, size) from error

    def append(self, data: Bytes) -> None:
        try:
            self._file.append(data)
        except OSError as error:
            raise write_error(error, self.path) from error

    def finish(self) -> str:
        """Write what is left; returns the SHA-256 of the file."""
        try:
            self._file.finish()
        except OSError as error:
            raise write_error(error, self.path) from error
        return self.sha256.hexdigest()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def write_error(error: OSError, path: Path, size: int | None = None) -> TargetError:
    """A write that failed, as a sentence where there is no space left."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return TargetError(f"cannot write {path}: {error.strerror}")
    needs = f", which needs {size / 1e6:.1f} MB" if size else ""
    return TargetError(f"no space left in {path.parent.parent} for {path.name}{needs}: free some or choose another -o")
