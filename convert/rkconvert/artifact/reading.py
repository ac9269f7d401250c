"""Bytes of the source's files, in pieces: a tensor by blocks of rows, or a file from its beginning to its end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rk3588.errors import CheckpointError
from rkconvert.sources.base import Source, SourceTensor

BLOCK_BYTES = 4 << 20  # of source weights at a time: so many that the time Python takes between blocks does not count


@dataclass(frozen=True)
class OpenFile:
    path: Path
    fd: int


class Piece(NamedTuple):
    """Bytes of a file of the source, not yet read."""

    file: OpenFile
    at: int
    size: int

    def read(self) -> bytes:
        path = self.file.path
        try:
            raw = os.pread(self.file.fd, self.size, self.at)
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
        if len(raw) < self.size:
            raise CheckpointError(f"{path} became shorter while it was read: leave it alone and convert again")
        return raw


@contextmanager
def opened(path: Path) -> Iterator[OpenFile]:
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    try:
        yield OpenFile(path, fd)
    finally:
        os.close(fd)


def block_rows(tensor: SourceTensor) -> int:
    """Rows read at a time: whole heads where they have to be put into order."""
    unit = tensor.shape[0] // tensor.heads if tensor.heads else 1
    per_unit = unit * (tensor.nbytes // tensor.rows)
    bits = 8 * tensor.nbytes // tensor.elements
    limit = BLOCK_BYTES * min(bits, 16) // 16  # as many weights of a packed type as of bf16
    return min(max(limit // per_unit, 1) * unit, tensor.run or tensor.rows)


def block_bytes(tensor: SourceTensor) -> int:
    return block_rows(tensor) * (tensor.nbytes // tensor.rows)


def tensor_pieces(tensor: SourceTensor, file: OpenFile) -> Iterator[tuple[int, Piece]]:
    """The tensor by blocks, each with its first row."""
    most, row_bytes, run = block_rows(tensor), tensor.nbytes // tensor.rows, tensor.run or tensor.rows
    for start in range(0, tensor.rows, run):
        at = tensor.offset + start // run * tensor.step * row_bytes
        for row in range(0, run, most):
            yield start + row, Piece(file, at + row * row_bytes, min(most, run - row) * row_bytes)


def file_pieces(file: OpenFile) -> Iterator[Piece]:
    """A file from its beginning to its end."""
    size = os.fstat(file.fd).st_size
    for at in range(0, size, BLOCK_BYTES):
        yield Piece(file, at, min(BLOCK_BYTES, size - at))


def blocks(tensor: SourceTensor) -> Iterator[tuple[int, bytes]]:
    """The rows of one tensor, a block at a time: (first row, bytes)."""
    with opened(tensor.file) as file:
        for row, piece in tensor_pieces(tensor, file):
            yield row, piece.read()


def refuse_overlaps(source: Source) -> None:
    """CheckpointError where two tensors of a file claim the same bytes."""
    claimed_up_to: dict[Path, int] = {}
    places = {(t.file, *(t.stored or (t.offset, t.nbytes)), t.name) for t in source.tensors.values()}
    for file, offset, nbytes, name in sorted(places):
        if offset < claimed_up_to.get(file, 0):
            raise CheckpointError(f"{file}: tensor {name} overlaps the one before it: get the file again")
        claimed_up_to[file] = offset + nbytes
