"""One pass over the source: blocks of rows are read in file order, hashed, and made into every artifact's tensors.

The calling thread reads; a pool quantises and writes; one more thread hashes, since that has to go in order.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rk3588 import sim
from rk3588.errors import CheckpointError
from rk3588.quant import Scheme

from .lora import Lora, Pair
from .plan import BLOCK_BYTES, OutTensor, block_rows
from .sources.base import Array, Source, SourceTensor
from .writer import ArtifactWriter, write_error


class Written(NamedTuple):
    """What a block became in one tensor of one artifact."""

    writer: ArtifactWriter
    tensor: OutTensor
    crc: int
    length: int


@dataclass(frozen=True)
class Sink:
    """A tensor to make from a source tensor; ``scale`` beside it where it is quantised."""

    writer: ArtifactWriter
    tensor: OutTensor
    scale: OutTensor | None

    def put(self, row: int, block: Block) -> list[Written]:
        """Convert and write the rows of ``block``, the first of which is row ``row`` of the tensor."""
        if self.scale is None:
            values = block.as_float32() if self.tensor.kind == "F32" else block.as_float16()
            return [self._write(self.tensor, row, values)]
        q, scales = block.quantised(self.writer.artifact.scheme_of(self.tensor.name))
        return [self._write(self.tensor, row, q), self._write(self.scale, row, scales)]

    def _write(self, tensor: OutTensor, row: int, values: Array) -> Written:
        data = values.data.cast("B")
        at = row * (data.nbytes // values.shape[0])
        try:
            return Written(self.writer, tensor, self.writer.write(tensor, at, data), data.nbytes)
        except OSError as error:
            raise write_error(error, self.writer.path) from error


_TOO_LARGE = 0x4780  # bf16's 65536, the first that fp16 rounds to infinity; those above are larger or not finite


@functools.cache
def _bf16_to_float16() -> npt.NDArray[np.float16]:
    """Every bf16 as the nearest fp16, by its bits: looking up is ten times as fast as computing."""
    values = (np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)).view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        halves: npt.NDArray[np.float16] = values.astype(np.float16)
    return halves


class Block:
    """Decoded rows of a source tensor, and what can be made of them; what is not finite is named with its place."""

    def __init__(self, tensor: SourceTensor, row: int, raw: bytes) -> None:
        self.tensor, self.row = tensor, row
        self.values, self.kind = tensor.decode(raw)
        self._float32: npt.NDArray[np.float32] | None = None
        self._float16: npt.NDArray[np.float16] | None = None

    def add(self, changes: Sequence[tuple[Pair, float]]) -> None:
        """Merge what adapters change in these rows. Summed in float64, so that the sum's order hardly ever shows."""
        rows = slice(self.row, self.row + len(self.values))
        wide = self.as_float32().astype(np.float64)
        for pair, scale in changes:
            wide += (scale * pair.factor) * (pair.b[rows].astype(np.float64) @ pair.a.astype(np.float64))
        self.values, self.kind, self._float32 = wide.astype(np.float32), "F32", None

    def quantised(self, scheme: Scheme) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
        try:
            return sim.quantise(self.values, self.kind, scheme)
        except ValueError as error:
            raise self._not_finite(*error.args) from None

    def as_float32(self) -> npt.NDArray[np.float32]:
        if self._float32 is None:
            if self.kind == "BF16":
                self._float32 = (self.values.astype(np.uint32) << np.uint32(16)).view(np.float32)
            else:
                self._float32 = np.ascontiguousarray(self.values, np.float32)
            finite = np.isfinite(self._float32)
            if not finite.all():
                raise self._not_finite(*np.argwhere(~finite)[0])
        return self._float32

    def as_float16(self) -> npt.NDArray[np.float16]:
        if self._float16 is None:
            if self.kind == "BF16" and (self.values & 0x7FFF).max() < _TOO_LARGE:
                self._float16 = _bf16_to_float16()[self.values]
            else:
                self._float16 = self._checked_float16()
        return self._float16

    def _checked_float16(self) -> npt.NDArray[np.float16]:
        values = self.as_float32()
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        infinite = np.isinf(halves)
        if infinite.any():
            row, column = np.argwhere(infinite)[0]
            raise CheckpointError(
                f"{self._at(row, column)} is {values[row, column]:g}, more than fp16 holds (65504): only --dtype fp32 "
                "can keep it"
            )
        return halves

    def _not_finite(self, row: int, column: int) -> CheckpointError:
        value = self.values[row, column]
        if self.kind == "BF16":
            value = np.array([value], np.uint16).astype(np.uint32).__lshift__(16).view(np.float32)[0]
        return CheckpointError(f"{self._at(row, column)} is {value}: the model is damaged, get it again")

    def _at(self, row: int, column: int) -> str:
        place = f"row {self.row + row}, column {column}" if len(self.tensor.shape) == 2 else f"position {column}"
        return f"{self.tensor.file}: tensor {self.tensor.name}, {place}"


def sinks_of(writers: Sequence[ArtifactWriter]) -> dict[str, list[Sink]]:
    """What has to be made from each source tensor, by canonical name."""
    found: dict[str, list[Sink]] = {}
    for writer in writers:
        tensors = {t.name: t for t in writer.artifact.tensors}
        for tensor in writer.artifact.tensors:
            if tensor.source and not tensor.name.endswith(".scale"):
                sink = Sink(writer, tensor, tensors.get(f"{tensor.name}.scale"))
                found.setdefault(tensor.source, []).append(sink)
    return found


def run(
    source: Source,
    writers: Sequence[ArtifactWriter],
    threads: int,
    step: Callable[[int], None],
    merged: Sequence[Lora] = (),
) -> dict[Path, str]:
    """Fill the writers from ``source`` with ``merged`` added; returns the SHA-256 of each source file.

    ``step`` is told the bytes of each piece read, and may raise to end the run.
    """
    _keep_memory()
    sinks = sinks_of(writers)
    names = {(t.file, t.offset): name for name, t in source.tensors.items()}
    digests = {}
    with _pool(threads) as workers, _pool(1) as hasher:
        flight = _Flight(limit=2 * threads)
        for file in source.files:
            digest = hashlib.sha256()
            for tensor, row, raw in _pieces(file, [t for t in source.tensors.values() if t.file == file]):
                jobs: list[Future[Any]] = [hasher.submit(digest.update, raw)]
                if tensor is not None:
                    name = names[file, tensor.offset]
                    changes = [lora for lora in merged if name in lora.pairs]
                    jobs.append(workers.submit(_convert, name, tensor, row, raw, sinks[name], changes))
                flight.add(jobs)
                step(len(raw))
            flight.drain()
            digests[file] = digest.hexdigest()
    return digests


@functools.cache
def _keep_memory() -> None:
    """Have glibc use a block's memory for the next one. It would return each to the kernel and ask for zeroed pages
    again, which takes longer than quantising does."""
    trim_threshold, mmap_threshold = -1, -3
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt:
        mallopt(mmap_threshold, 32 << 20)
        mallopt(trim_threshold, 256 << 20)


@contextmanager
def _pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """A pool that forgets what has not begun when the block ends in an exception."""
    pool = ThreadPoolExecutor(threads)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _convert(
    name: str, tensor: SourceTensor, row: int, raw: bytes, sinks: list[Sink], merged: Sequence[Lora]
) -> list[Written]:
    block = Block(tensor, row, raw)
    if merged:
        block.add([(lora.pairs[name], lora.option.scale) for lora in merged])
    return [written for sink in sinks for written in sink.put(row, block)]


class _Flight:
    """Jobs under way, at most ``limit`` groups, taken down in order: the checksums need that, and so do errors."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._jobs: deque[list[Future[Any]]] = deque()

    def add(self, jobs: list[Future[Any]]) -> None:
        self._jobs.append(jobs)
        if len(self._jobs) > self._limit:
            self._land()

    def drain(self) -> None:
        while self._jobs:
            self._land()

    def _land(self) -> None:
        for job in self._jobs.popleft():
            for done in job.result() or ():
                done.writer.add_crc(done.tensor, done.crc, done.length)


def _pieces(file: Path, tensors: list[SourceTensor]) -> Iterator[tuple[SourceTensor | None, int, bytes]]:
    """The whole file in order: (tensor, first row, bytes), or (None, 0, bytes) for what lies between tensors."""
    fd = _open(file)
    try:
        at = 0
        for tensor in sorted(tensors, key=lambda t: t.offset):
            if tensor.offset < at:
                raise CheckpointError(f"{file}: tensor {tensor.name} overlaps the one before it: get the file again")
            yield from ((None, 0, raw) for raw in _between(fd, file, at, tensor.offset))
            rows, row_bytes = block_rows(tensor), tensor.nbytes // tensor.rows
            for row in range(0, tensor.rows, rows):
                n = min(rows, tensor.rows - row) * row_bytes
                yield tensor, row, _read(fd, file, n, tensor.offset + row * row_bytes)
            at = tensor.offset + tensor.nbytes
        yield from ((None, 0, raw) for raw in _between(fd, file, at, os.fstat(fd).st_size))
    finally:
        os.close(fd)


def blocks(tensor: SourceTensor) -> Iterator[tuple[int, bytes]]:
    """The rows of one tensor, a block at a time: (first row, bytes)."""
    rows, row_bytes = block_rows(tensor), tensor.nbytes // tensor.rows
    fd = _open(tensor.file)
    try:
        for row in range(0, tensor.rows, rows):
            n = min(rows, tensor.rows - row) * row_bytes
            yield row, _read(fd, tensor.file, n, tensor.offset + row * row_bytes)
    finally:
        os.close(fd)


def _open(file: Path) -> int:
    try:
        return os.open(file, os.O_RDONLY)
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror}") from error


def _between(fd: int, file: Path, start: int, end: int) -> Iterator[bytes]:
    for at in range(start, end, BLOCK_BYTES):
        yield _read(fd, file, min(BLOCK_BYTES, end - at), at)


def _read(fd: int, file: Path, n: int, at: int) -> bytes:
    try:
        raw = os.pread(fd, n, at)
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror}") from error
    if len(raw) < n:
        raise CheckpointError(f"{file} became shorter while it was read: leave it alone and convert again")
    return raw
