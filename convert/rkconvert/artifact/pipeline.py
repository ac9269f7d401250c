"""One pass over the source, and every artifact is written. The data go one way:

1. read: each tensor of the source, in the artifacts' order, a block of rows at a time (reading.py);
2. convert: a block into the rows of each artifact's tensors (block.py), by a pool of threads, which reads it as well,
   so that the bytes are in the core's cache; before that adapters are merged and weights turned (blocks.py);
3. order: the rows of each artifact as its file has them, with their checksums (file_order.py);
4. hash: the next bytes of all artifacts, on one thread, for that is faster side by side (sha256.py);
5. write: them, on a thread for each artifact (artifact_file.py).

Nothing is read back. Beside it the source's own files are read from their beginning, for their SHA-256, on a thread of
its own: tensors rarely lie in a file as they do in an artifact.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rkconvert.adapters.lora import Lora
from rkconvert.sources.base import Array, Source

from .artifact_file import ArtifactFile
from .block import Block
from .blocks import BlockJob, block_jobs
from .file_order import FileOrder
from .layout import ArtifactTensor
from .reading import OpenFile, Piece, file_pieces, opened, refuse_overlaps
from .sha256 import Bytes, update_together

WAITING_FOR_DISK = 4  # blocks converted and not yet written; with more of them, they no longer are in the caches


class Rows(NamedTuple):
    """The next rows of a tensor of an artifact."""

    file: ArtifactFile
    tensor: ArtifactTensor
    values: Array


@dataclass(frozen=True)
class Conversion:
    """A tensor to make from a source tensor; ``scale`` beside it where it is quantised."""

    file: ArtifactFile
    tensor: ArtifactTensor
    scale: ArtifactTensor | None

    def apply(self, block: Block) -> list[Rows]:
        """What the rows of ``block`` become."""
        if self.scale is None:
            values = block.as_float32() if self.tensor.kind == "F32" else block.as_float16()
            return [Rows(self.file, self.tensor, values)]
        weights, scales = block.quantised(self.file.artifact.scheme_of(self.tensor.name))
        return [Rows(self.file, self.tensor, weights), Rows(self.file, self.scale, scales)]


def run(
    source: Source,
    files: Sequence[ArtifactFile],
    threads: int,
    step: Callable[[int, int], None],
    merged: Sequence[Lora] = (),
) -> dict[Path, str]:
    """Fill the files from ``source`` with ``merged`` added; returns the SHA-256 of each source file.

    ``step`` is told the bytes read so far and in all, and may raise to end the run.
    """
    _keep_memory()
    refuse_overlaps(source)
    orders = {file: FileOrder(file.artifact) for file in files}
    with ExitStack() as stack:
        inputs = {path: stack.enter_context(opened(path)) for path in source.files}
        hashes = SourceHashes(inputs)
        workers = stack.enter_context(_pool(threads))
        output = Output(stack, files, hashes)
        output.append((file, file.header) for file in files)
        for rows in _converted(source, inputs, files, workers, 2 * threads, step, merged):
            output.append((r.file, data) for r in rows for data in orders[r.file].add(r.tensor, r.values))
        for name, values in source.config.rope_tensors().items():
            factors = np.array(values, "<f4")
            places = [(file, tensor) for file in files for tensor in file.artifact.tensors if tensor.name == name]
            output.append((file, data) for file, tensor in places for data in orders[file].add(tensor, factors))
        output.append((file, data) for file in files for data in orders[file].checksums())
        output.finish()
    return hashes.hexdigests()


def _converted(
    source: Source,
    inputs: dict[Path, OpenFile],
    files: Sequence[ArtifactFile],
    workers: ThreadPoolExecutor,
    ahead: int,
    step: Callable[[int, int], None],
    merged: Sequence[Lora],
) -> Iterator[list[Rows]]:
    """Steps 1 and 2: block after block in order, ``ahead`` of them in work. Errors come in that order, too."""
    order = conversions_in_order(files)
    done, total = 0, sum(source.tensors[group[0].tensor.source].nbytes for group in order)
    in_work: deque[Future[list[Rows]]] = deque()
    for conversions in order:
        name = conversions[0].tensor.source
        for job in block_jobs(source, name, inputs[source.tensors[name].file], merged):
            in_work.append(workers.submit(_convert, job, conversions))
            if len(in_work) > ahead:
                yield in_work.popleft().result()
            done += job.nbytes
            step(done, total)
    while in_work:
        yield in_work.popleft().result()


def conversions_in_order(files: Sequence[ArtifactFile]) -> list[list[Conversion]]:
    """What is made together, the tensors of one name, in an order that is every artifact's own."""
    # Where the others lack a tensor of the longest, the rest is in the same order.
    found: dict[str, list[Conversion]] = {}
    for file in sorted(files, key=lambda file: -len(file.artifact.tensors)):
        tensors = {t.name: t for t in file.artifact.tensors}
        for tensor in file.artifact.tensors:
            if tensor.source and not tensor.name.endswith(".scale"):
                scale = tensors.get(f"{tensor.name}.scale")
                found.setdefault(tensor.name, []).append(Conversion(file, tensor, scale))
    return list(found.values())


def _convert(job: BlockJob, conversions: list[Conversion]) -> list[Rows]:
    block = job.make()
    return [rows for conversion in conversions for rows in conversion.apply(block)]


class SourceHashes:
    """The SHA-256 of the source's files, a piece of one at a time."""

    def __init__(self, inputs: dict[Path, OpenFile]) -> None:
        self._digests = {path: hashlib.sha256() for path in inputs}
        pieces = ((path, piece) for path, file in inputs.items() for piece in file_pieces(file))
        self.jobs = (functools.partial(self._hash, path, piece) for path, piece in pieces)

    def _hash(self, path: Path, piece: Piece) -> None:
        self._digests[path].update(piece.read())

    def hexdigests(self) -> dict[Path, str]:
        return {path: digest.hexdigest() for path, digest in self._digests.items()}


class Output:
    """Steps 4 and 5, and with each call of ``append`` a piece of the source is hashed."""

    def __init__(self, stack: ExitStack, files: Sequence[ArtifactFile], source: SourceHashes) -> None:
        self._source_jobs = iter(source.jobs)
        self._source_hasher, self._hasher = stack.enter_context(_pool(1)), stack.enter_context(_pool(1))
        self._writers = {file: stack.enter_context(_pool(1)) for file in files}
        self._in_work: deque[list[Future[Any]]] = deque()

    def append(self, pieces: Iterable[tuple[ArtifactFile, Bytes]]) -> None:
        """The next bytes of files. Waits while there is too much that waits for the disk."""
        pieces = list(pieces)
        jobs: list[Future[Any]] = [self._source_hasher.submit(job) for job in itertools.islice(self._source_jobs, 1)]
        jobs.append(self._hasher.submit(update_together, [(file.sha256, data) for file, data in pieces]))
        jobs += [self._writers[file].submit(file.append, data) for file, data in pieces]
        self._add(jobs)

    def finish(self) -> None:
        """Wait for the disk, and hash what is left of the source."""
        for job in self._source_jobs:
            self._add([self._source_hasher.submit(job)])
        while self._in_work:
            self._wait_for_oldest()

    def _add(self, jobs: list[Future[Any]]) -> None:
        self._in_work.append(jobs)
        if len(self._in_work) > WAITING_FOR_DISK:
            self._wait_for_oldest()

    def _wait_for_oldest(self) -> None:
        for job in self._in_work.popleft():
            job.result()


@functools.cache
def _keep_memory() -> None:
    """Have glibc use a block's memory for the next one. It would return each to the kernel and ask for zeroed pages
    again: 1.2 GB into three dtypes took 40,000 page faults with this and 75,000 to 160,000 without, and 3.26 s of the
    processor instead of 3.36."""
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
