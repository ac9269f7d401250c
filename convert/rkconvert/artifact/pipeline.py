"""One pass over the source: blocks of rows are made into every artifact's tensors, in the artifacts' order, and each
file is hashed and written as it grows. Nothing is read back.

Beside it the source's own files are read in their order, for their SHA-256: a hash begins at the beginning of a file,
and tensors rarely lie in it as they do in an artifact.

A pool quantises. What has to go in order has a thread of its own: the hashing of the source, that of the artifacts,
which is faster side by side, and the writing of each artifact. Whoever needs bytes of the source reads them, so that
they are in its core's cache.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rk3588 import sim
from rk3588.errors import CheckpointError
from rkconvert.adapters.lora import Lora
from rkconvert.plan import AHEAD, BLOCK_BYTES, OutTensor, block_rows
from rkconvert.sources.base import Array, Source, SourceTensor

from .block import Block
from .sha256 import Bytes, update_together
from .writer import ArtifactWriter


class Made(NamedTuple):
    """Rows of a tensor of one artifact, and their CRC-32."""

    writer: ArtifactWriter
    tensor: OutTensor
    values: Array
    crc: int


@dataclass(frozen=True)
class Sink:
    """A tensor to make from a source tensor; ``scale`` beside it where it is quantised."""

    writer: ArtifactWriter
    tensor: OutTensor
    scale: OutTensor | None

    def make(self, block: Block) -> list[Made]:
        """What the rows of ``block`` become."""
        if self.scale is None:
            values = block.as_float32() if self.tensor.kind == "F32" else block.as_float16()
            return [self._made(self.tensor, values)]
        q, scales = block.quantised(self.writer.artifact.scheme_of(self.tensor.name))
        return [self._made(self.tensor, q), self._made(self.scale, scales)]

    def _made(self, tensor: OutTensor, values: Array) -> Made:
        return Made(self.writer, tensor, values, sim.crc32(values))


def sinks_in_order(writers: Sequence[ArtifactWriter]) -> list[list[Sink]]:
    """The sinks that are filled together, those of one tensor name, in an order that is every artifact's own."""
    # Where the others lack a tensor of the longest, the rest is in the same order.
    found: dict[str, list[Sink]] = {}
    for writer in sorted(writers, key=lambda w: -len(w.artifact.tensors)):
        tensors = {t.name: t for t in writer.artifact.tensors}
        for tensor in writer.artifact.tensors:
            if tensor.source and not tensor.name.endswith(".scale"):
                found.setdefault(tensor.name, []).append(Sink(writer, tensor, tensors.get(f"{tensor.name}.scale")))
    return list(found.values())


def run(
    source: Source,
    writers: Sequence[ArtifactWriter],
    threads: int,
    step: Callable[[int, int], None],
    merged: Sequence[Lora] = (),
) -> dict[Path, str]:
    """Fill the writers from ``source`` with ``merged`` added; returns the SHA-256 of each source file.

    ``step`` is told the bytes read so far and in all, and may raise to end the run.
    """
    _keep_memory()
    _check_places(source)
    order = sinks_in_order(writers)
    done, total = 0, sum(source.tensors[sinks[0].tensor.source].nbytes for sinks in order)
    digests = {file: hashlib.sha256() for file in source.files}
    with ExitStack() as stack:
        opened = {file: stack.enter_context(_opened(file)) for file in source.files}
        originals = (_Original(digests[file], piece) for file in source.files for piece in _whole(opened[file]))
        workers = stack.enter_context(_pool(threads))
        output = _Output(stack, writers, originals)
        output.put([(writer, writer.header) for writer in writers])
        flight = _Flight(2 * threads, output.append)
        for sinks in order:
            name = sinks[0].tensor.source
            tensor, changes = source.tensors[name], [lora for lora in merged if name in lora.pairs]
            for row, piece in _rows(tensor, opened[tensor.file]):
                flight.add([workers.submit(_convert, name, tensor, row, piece, sinks, changes)])
                done += piece.size
                step(done, total)
        flight.drain()
        for name, values in source.config.rope_tensors().items():
            factors = np.array(values, "<f4")
            made = ((writer, tensor) for writer in writers for tensor in writer.artifact.tensors)
            output.append([Made(w, tensor, factors, sim.crc32(factors)) for w, tensor in made if tensor.name == name])
        output.put([(writer, data) for writer in writers for data in writer.checksums()])
        output.finish()
    return {file: digest.hexdigest() for file, digest in digests.items()}


def _convert(
    name: str, tensor: SourceTensor, row: int, piece: Piece, sinks: list[Sink], merged: Sequence[Lora]
) -> list[Made]:
    block = Block(tensor, row, piece.read())
    if merged:
        block.add([(lora.pairs[name], lora.option.scale) for lora in merged])
    return [made for sink in sinks for made in sink.make(block)]


class _Output:
    """What becomes of finished blocks: hashed and written. A piece of the source is hashed with each of them."""

    def __init__(self, stack: ExitStack, writers: Sequence[ArtifactWriter], source: Iterator[_Original]) -> None:
        self._source = source
        self._source_hasher, self._hasher = stack.enter_context(_pool(1)), stack.enter_context(_pool(1))
        self._disks = {writer: stack.enter_context(_pool(1)) for writer in writers}
        self._flight = _Flight(AHEAD, lambda _: None)

    def append(self, made: list[Made]) -> None:
        """The next rows of tensors; what has to wait for its turn in the file waits in the writer."""
        self.put([(m.writer, data) for m in made for data in m.writer.in_order(m.tensor, m.values, m.crc)])

    def put(self, pieces: list[tuple[ArtifactWriter, Bytes]]) -> None:
        """The next bytes of files."""
        jobs = [self._source_hasher.submit(original.hash) for original in itertools.islice(self._source, 1)]
        jobs.append(self._hasher.submit(update_together, [(writer.sha256, data) for writer, data in pieces]))
        jobs += [self._disks[writer].submit(writer.put, data) for writer, data in pieces]
        self._flight.add(jobs)

    def finish(self) -> None:
        """Wait for the disk, and hash what is left of the source."""
        for original in self._source:
            self._flight.add([self._source_hasher.submit(original.hash)])
        self._flight.drain()


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


class _Flight:
    """Jobs under way, at most ``limit`` groups. What they return is handed to ``take`` in the order they came in: the
    checksums and the files need that, and so do errors."""

    def __init__(self, limit: int, take: Callable[[Any], None]) -> None:
        self._limit, self._take = limit, take
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
            self._take(job.result())


def _check_places(source: Source) -> None:
    ends: dict[Path, int] = {}
    places = {(t.file, *(t.stored or (t.offset, t.nbytes)), t.name) for t in source.tensors.values()}
    for file, offset, nbytes, name in sorted(places):
        if offset < ends.get(file, 0):
            raise CheckpointError(f"{file}: tensor {name} overlaps the one before it: get the file again")
        ends[file] = offset + nbytes


def blocks(tensor: SourceTensor) -> Iterator[tuple[int, bytes]]:
    """The rows of one tensor, a block at a time: (first row, bytes)."""
    with _opened(tensor.file) as file:
        for row, piece in _rows(tensor, file):
            yield row, piece.read()


@dataclass(frozen=True)
class _File:
    path: Path
    fd: int


class Piece(NamedTuple):
    """Bytes of a file of the source, not yet read."""

    file: _File
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


class _Original(NamedTuple):
    """The next piece of a file that is being hashed."""

    digest: hashlib._Hash
    piece: Piece

    def hash(self) -> None:
        self.digest.update(self.piece.read())


def _rows(tensor: SourceTensor, file: _File) -> Iterator[tuple[int, Piece]]:
    """The tensor by blocks, each with its first row."""
    most, row_bytes, run = block_rows(tensor), tensor.nbytes // tensor.rows, tensor.run or tensor.rows
    for start in range(0, tensor.rows, run):
        at = tensor.offset + start // run * tensor.step * row_bytes
        for row in range(0, run, most):
            yield start + row, Piece(file, at + row * row_bytes, min(most, run - row) * row_bytes)


def _whole(file: _File) -> Iterator[Piece]:
    """A file from its beginning to its end."""
    size = os.fstat(file.fd).st_size
    for at in range(0, size, BLOCK_BYTES):
        yield Piece(file, at, min(BLOCK_BYTES, size - at))


@contextmanager
def _opened(path: Path) -> Iterator[_File]:
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    try:
        yield _File(path, fd)
    finally:
        os.close(fd)
