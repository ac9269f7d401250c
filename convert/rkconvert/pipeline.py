"""One pass over the source: blocks of rows are made into every artifact's tensors, in the artifacts' order, and each
file is hashed and written as it grows. Nothing is read back.

Beside it the source's own files are read in their order, for their SHA-256: a hash begins at the beginning of a file,
and tensors rarely lie in it as they do in an artifact.

The calling thread reads; a pool quantises. What has to go in order has a thread of its own: all hashing, since that is
faster side by side, and the writing of each artifact.
"""

from __future__ import annotations

import ctypes
import functools
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

from .block import Block
from .config import ROPE_FACTORS
from .lora import Lora
from .plan import AHEAD, BLOCK_BYTES, OutTensor, block_rows
from .sha256 import Bytes, Sha256, update_together
from .sources.base import Array, Source, SourceTensor
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
    digests = {file: Sha256() for file in source.files}
    originals = ((digests[file], raw) for file in source.files for raw in _whole(file))
    with ExitStack() as stack:
        workers = stack.enter_context(_pool(threads))
        output = stack.enter_context(_output(writers, originals))
        output.put([(writer, writer.header) for writer in writers])
        flight = _Flight(2 * threads, output.append)
        for sinks in order:
            name = sinks[0].tensor.source
            tensor, changes = source.tensors[name], [lora for lora in merged if name in lora.pairs]
            for row, raw in blocks(tensor):
                flight.add([workers.submit(_convert, name, tensor, row, raw, sinks, changes)])
                done += len(raw)
                step(done, total)
        flight.drain()
        factors = np.array(source.config.rope_factors or (), "<f4")
        output.append(
            [
                Made(writer, tensor, factors, sim.crc32(factors))
                for writer in writers
                for tensor in writer.artifact.tensors
                if tensor.name == ROPE_FACTORS
            ]
        )
        output.put([(writer, data) for writer in writers for data in writer.checksums()])
        output.finish()
    return {file: digest.hexdigest() for file, digest in digests.items()}


def _convert(
    name: str, tensor: SourceTensor, row: int, raw: bytes, sinks: list[Sink], merged: Sequence[Lora]
) -> list[Made]:
    block = Block(tensor, row, raw)
    if merged:
        block.add([(lora.pairs[name], lora.option.scale) for lora in merged])
    return [made for sink in sinks for made in sink.make(block)]


class _Output:
    """What becomes of finished blocks: hashed on one thread, written on one a file. A piece of the source's own files
    is hashed with each of them."""

    def __init__(
        self,
        hasher: ThreadPoolExecutor,
        disks: dict[ArtifactWriter, ThreadPoolExecutor],
        originals: Iterator[tuple[Sha256, Bytes]],
    ) -> None:
        self._hasher, self._disks, self._originals = hasher, disks, originals
        self._flight = _Flight(AHEAD, lambda _: None)

    def append(self, made: list[Made]) -> None:
        """The next rows of tensors; what has to wait for its turn in the file waits in the writer."""
        self.put([(m.writer, data) for m in made for data in m.writer.in_order(m.tensor, m.values, m.crc)])

    def put(self, pieces: list[tuple[ArtifactWriter, Bytes]]) -> None:
        """The next bytes of files."""
        original = next(self._originals, None)
        messages = [original] if original else []
        hashed = self._hasher.submit(
            update_together, [*messages, *((writer.sha256, data) for writer, data in pieces)]
        )
        self._flight.add([hashed, *(self._disks[writer].submit(writer.put, data) for writer, data in pieces)])

    def finish(self) -> None:
        for original in self._originals:
            self._flight.add([self._hasher.submit(update_together, [original])])
        self._flight.drain()


@contextmanager
def _output(writers: Sequence[ArtifactWriter], originals: Iterator[tuple[Sha256, Bytes]]) -> Iterator[_Output]:
    with ExitStack() as stack:
        hasher = stack.enter_context(_pool(1))
        yield _Output(hasher, {writer: stack.enter_context(_pool(1)) for writer in writers}, originals)


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
    for tensor in sorted(source.tensors.values(), key=lambda t: t.offset):
        if tensor.offset < ends.get(tensor.file, 0):
            raise CheckpointError(
                f"{tensor.file}: tensor {tensor.name} overlaps the one before it: get the file again"
            )
        ends[tensor.file] = tensor.offset + tensor.nbytes


def blocks(tensor: SourceTensor) -> Iterator[tuple[int, bytes]]:
    """The rows of one tensor, a block at a time: (first row, bytes)."""
    rows, row_bytes = block_rows(tensor), tensor.nbytes // tensor.rows
    with _opened(tensor.file) as fd:
        for row in range(0, tensor.rows, rows):
            n = min(rows, tensor.rows - row) * row_bytes
            yield row, _read(fd, tensor.file, n, tensor.offset + row * row_bytes)


def _whole(file: Path) -> Iterator[Bytes]:
    """A file from its beginning to its end."""
    with _opened(file) as fd:
        size = os.fstat(fd).st_size
        for at in range(0, size, BLOCK_BYTES):
            yield np.frombuffer(_read(fd, file, min(BLOCK_BYTES, size - at), at), np.uint8)


@contextmanager
def _opened(file: Path) -> Iterator[int]:
    try:
        fd = os.open(file, os.O_RDONLY)
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror}") from error
    try:
        yield fd
    finally:
        os.close(fd)


def _read(fd: int, file: Path, n: int, at: int) -> bytes:
    try:
        raw = os.pread(fd, n, at)
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror}") from error
    if len(raw) < n:
        raise CheckpointError(f"{file} became shorter while it was read: leave it alone and convert again")
    return raw
