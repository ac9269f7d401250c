"""Writes ``model.sim.gguf`` (docs/sim-gguf.md), from its first byte to its last: header, tensor data at known offsets,
checksums."""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rk3588.errors import TargetError
from rkconvert.plan import ALIGNMENT, Artifact, OutTensor
from rkconvert.sources.base import Array

from .crc import combine
from .direct_file import DirectFile
from .sha256 import Bytes, Sha256


class ArtifactWriter:
    """One file being written: the header, the tensors in their order, and last their checksums.

    ``in_order`` and ``checksums`` are for one thread, ``put`` and ``finish`` for another.
    """

    def __init__(self, path: Path, artifact: Artifact, header: bytes) -> None:
        self.path, self.artifact = path, artifact
        self.header: Bytes = np.frombuffer(header, np.uint8)
        self.sha256 = Sha256()
        self._crc = dict.fromkeys((t.name for t in artifact.tensors), 0)
        self._waiting: dict[str, list[Bytes]] = {}
        self._done, self._left = 0, 0  # tensors begun, and what the last of them lacks
        size = len(header) + artifact.data_bytes
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            os.posix_fallocate(self._fd, 0, size)  # no space is found out now and not at the end
            self._file = DirectFile(self._fd)
        except OSError as error:
            self.close()
            raise write_error(error, path, size) from error

    def in_order(self, tensor: OutTensor, values: Array, crc: int) -> Iterator[Bytes]:
        """What can be put now that the next rows of ``tensor``, whose CRC-32 is ``crc``, are there.

        Rows of a later tensor wait for its turn, as scales do; padding comes behind each tensor.
        """
        data = values.reshape(-1).view(np.uint8)
        self._crc[tensor.name] = combine(self._crc[tensor.name], crc, len(data))
        self._waiting.setdefault(tensor.name, []).append(data)
        tensors = self.artifact.tensors
        while True:
            if not self._left:
                if self._done == len(tensors) or tensors[self._done].name not in self._waiting:
                    return
                self._left = tensors[self._done].nbytes
                self._done += 1
            current = tensors[self._done - 1]
            for piece in self._waiting.pop(current.name, ()):
                self._left -= len(piece)
                yield piece
            if self._left:
                return
            yield np.zeros(-current.nbytes % ALIGNMENT, np.uint8)

    def checksums(self) -> Iterator[Bytes]:
        """The last tensor, when all the others have been put: their CRC-32, and that of these."""
        *others, last = self.artifact.tensors
        sums = np.array([self._crc[tensor.name] for tensor in others], "<u4")
        yield from self.in_order(last, np.append(sums, np.array(zlib.crc32(sums.data), "<u4")), 0)

    def put(self, data: Bytes) -> None:
        """Write the next bytes."""
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
