"""The bytes of an artifact in the order in which its file has them, whatever the order the tensors are made in."""

from __future__ import annotations

import zlib

import numpy as np

from rk3588 import hostlib
from rkconvert.sources.base import Array

from .layout import ALIGNMENT, Artifact, ArtifactTensor
from .sha256 import Bytes


class FileOrder:
    """Given rows of tensors, it gives back what can be written now; the rest is kept until its turn has come, as scales
    are until all rows of their tensor are there. Padding comes behind each tensor, and the checksums last."""

    def __init__(self, artifact: Artifact) -> None:
        self._tensors = artifact.tensors
        self._checksums = dict.fromkeys((tensor.name for tensor in artifact.tensors), 0)
        self._kept: dict[str, list[Bytes]] = {}
        self._begun, self._missing = 0, 0  # tensors begun, and the bytes that the last of them lacks

    def add(self, tensor: ArtifactTensor, values: Array) -> list[Bytes]:
        """What can be written now that the next rows of ``tensor`` are there."""
        data = values.reshape(-1).view(np.uint8)
        self._checksums[tensor.name] = hostlib.crc32(data, self._checksums[tensor.name])
        self._kept.setdefault(tensor.name, []).append(data)
        ready: list[Bytes] = []
        while self._missing or self._begin_next():
            current = self._tensors[self._begun - 1]
            pieces = self._kept.pop(current.name, [])
            ready += pieces
            self._missing -= sum(map(len, pieces))
            if self._missing:
                break
            ready.append(np.zeros(-current.nbytes % ALIGNMENT, np.uint8))
        return ready

    def _begin_next(self) -> bool:
        """Whether there is anything of the next tensor."""
        if self._begun == len(self._tensors) or self._tensors[self._begun].name not in self._kept:
            return False
        self._missing = self._tensors[self._begun].nbytes
        self._begun += 1
        return True

    def checksums(self) -> list[Bytes]:
        """The last tensor, when all the others have been added: their CRC-32, and that of these."""
        *others, last = self._tensors
        sums = np.array([self._checksums[tensor.name] for tensor in others], "<u4")
        return self.add(last, np.append(sums, np.array(zlib.crc32(sums.data), "<u4")))
