"""A GGUF file of the Llama family, in every type that the ``gguf`` package dequantises.

The header is read here and not with gguf.GGUFReader, which believes every count: a hostile one makes it loop or
allocate without end. Here no count is believed before it fits into the file.
"""

from __future__ import annotations

import math
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

import numpy as np

from rk3588.errors import CheckpointError
from rkconvert import config as configs
from rkconvert.vocabulary_gguf import read_vocabulary

from .base import Checkpoint, Source, SourceTensor, checked_tensors, vocabulary_or_note, with_heads

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


class Header(NamedTuple):
    """Metadata by key, and tensors by name with their shapes as (N, K)."""

    metadata: dict[str, Any]
    tensors: dict[str, SourceTensor]


def read(path: Path) -> Source:
    """The model in ``path``; CheckpointError says what is wrong with it or not supported."""
    metadata, found = read_header(path)
    embedding = found.get(configs.EMBEDDING)
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(f"{path} lacks the tensor {configs.EMBEDDING}: is it a language model?")
    vocab_size = metadata.get("llama.vocab_size", embedding.shape[0])
    tied = configs.OUTPUT not in found
    config = configs.from_gguf(metadata, str(path), vocab_size=vocab_size, tied=tied)
    tensors = with_heads(config, checked_tensors(config, found, path, {configs.ROPE_FACTORS}))
    if configs.ROPE_FACTORS in found:
        factors = _factors(found[configs.ROPE_FACTORS], config.head_dim)
        linear = config.rope_factors or (1.0,) * len(factors)
        config = replace(config, rope_factors=tuple(f * s for f, s in zip(factors, linear, strict=True)))
    vocabulary = read_vocabulary(metadata, path, config.vocab_size)
    return Source(
        path=path,
        kind="gguf",
        architecture="llama",
        config=config,
        vocabulary=vocabulary,
        tensors=tensors,
        files=(path,),
        shape=config.shape(path.name),
        licence=configs.stated_licence(metadata),
        notes=vocabulary.notes,
    )


def read_any(path: Path) -> Checkpoint:
    """The model in ``path``, whatever its architecture; of a Llama, what ``read`` would say without refusing."""
    metadata, found = read_header(path)
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or not found:
        raise CheckpointError(f"{path} holds no model: it names no architecture, or has no tensors")
    embedding = found.get(configs.EMBEDDING)
    rows = embedding.rows if embedding else 0
    vocabulary, notes = vocabulary_or_note(lambda: read_vocabulary(metadata, path, rows))
    shape = None
    if architecture == "llama":
        tied = configs.OUTPUT not in found
        config = configs.from_gguf(metadata, str(path), vocab_size=metadata.get("llama.vocab_size", rows), tied=tied)
        shape = config.shape(path.name)
    return Checkpoint(
        path=path,
        kind="gguf",
        architecture=architecture,
        tensors=found,
        files=(path,),
        vocabulary=vocabulary,
        shape=shape,
        licence=configs.stated_licence(metadata),
        notes=notes,
    )


def _factors(tensor: SourceTensor, head_dim: int) -> tuple[float, ...]:
    if tensor.kind != "F32" or tensor.shape != (head_dim // 2,):
        raise CheckpointError(
            f"{tensor.file}: tensor {tensor.name} is {tensor.kind} {list(tensor.shape)}, expected F32 [{head_dim // 2}]"
        )
    with tensor.file.open("rb") as file:
        file.seek(tensor.offset)
        values = np.frombuffer(file.read(tensor.nbytes), "<f4")
    if not (np.isfinite(values) & (values > 0)).all():
        raise CheckpointError(f"{tensor.file}: tensor {tensor.name} has a value that is not above zero")
    return tuple(float(v) for v in values)


def read_header(path: Path) -> Header:
    """Everything before the tensors' data, with each tensor checked to lie inside the file."""
    with path.open("rb") as file:
        reader = _Reader(path, file)
        if reader.take(4) != b"GGUF":
            raise CheckpointError(f"{path} is not a GGUF file")
        version = reader.scalar("I")
        if version not in (2, 3):
            raise CheckpointError(f"{path}: GGUF version {version} is not supported, only 2 and 3 (little-endian)")
        tensor_count, pair_count = reader.count(24), reader.count(13)
        metadata = {}
        for _ in range(pair_count):
            key = reader.text()
            metadata[key] = reader.value(reader.scalar("I"))
        if "rksim.version" in metadata:
            raise CheckpointError(f"{path} is a converted artifact already: give the model that it was made from")
        infos = [reader.tensor_info() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
            raise CheckpointError(f"{path}: general.alignment is {alignment!r}: the file is damaged")
        start = -(-reader.at // alignment) * alignment
    tensors = {name: _tensor(path, name, dims, kind, start + offset) for name, dims, kind, offset in infos}
    if len(tensors) != tensor_count:
        raise CheckpointError(f"{path}: two tensors have the same name: the file is damaged")
    for tensor in tensors.values():
        if tensor.offset + tensor.nbytes > reader.size:
            raise CheckpointError(
                f"{path} is truncated: tensor {tensor.name} ends at byte {tensor.offset + tensor.nbytes}, the file has "
                f"{reader.size}: download it again"
            )
    return Header(metadata, tensors)


def _tensor(path: Path, name: str, dims: tuple[int, ...], kind_number: int, offset: int) -> SourceTensor:
    import gguf

    try:
        kind = gguf.GGMLQuantizationType(kind_number)
    except ValueError:
        raise CheckpointError(f"{path}: tensor {name} has the unknown type {kind_number}") from None
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    try:
        gguf.quants.dequantize(np.zeros((1, block_bytes), np.uint8), kind)
    except NotImplementedError:
        raise CheckpointError(
            f"{path}: tensor {name} has type {kind.name}, which the gguf package cannot dequantise"
        ) from None
    if not dims or dims[0] % block or 0 in dims or len(dims) > 2:
        raise CheckpointError(f"{path}: tensor {name} of type {kind.name} cannot have the dimensions {list(dims)}")
    return SourceTensor(name, kind.name, dims[::-1], path, offset, math.prod(dims) // block * block_bytes)


class _Reader:
    """Reads forward and never past the end; what does not fit is one sentence with the place."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file
        self.size = path.stat().st_size
        self.at = 0

    def _fail(self, what: str) -> NoReturn:
        raise CheckpointError(f"{self.path} is truncated or damaged: {what} at byte {self.at}: download it again")

    def take(self, n: int) -> bytes:
        if n > self.size - self.at:
            self._fail(f"{n} bytes are missing")
        self.at += n
        return self.file.read(n)

    def scalar(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def count(self, item: int) -> int:
        """A number of things of at least ``item`` bytes each."""
        n = int(self.scalar("Q"))
        if n * item > self.size - self.at:
            self._fail(f"a count of {n}, more than the file can hold,")
        return n

    def text(self) -> str:
        return self.take(self.count(1)).decode("utf-8", "surrogateescape")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == _STRING:
            return self.text()
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind != _ARRAY or depth > 2:
            self._fail(f"a value of the unknown type {kind}")
        item = self.scalar("I")
        if item in _SCALARS:
            n = self.count(struct.calcsize("<" + _SCALARS[item]))
            return list(struct.unpack(f"<{n}{_SCALARS[item]}", self.take(n * struct.calcsize("<" + _SCALARS[item]))))
        return [self.value(item, depth + 1) for _ in range(self.count(8))]

    def tensor_info(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self.text()
        n = self.scalar("I")
        if n > 4:
            self._fail(f"a tensor of {n} dimensions")
        dims = tuple(int(self.scalar("Q")) for _ in range(n))
        return name, dims, int(self.scalar("I")), int(self.scalar("Q"))
