"""A GGUF file, whole or in parts, in every type that the ``gguf`` package dequantises.

The header is read by ``rk3588.gguf`` and not with gguf.GGUFReader, which believes every count: a hostile one makes it
loop or allocate without end.
"""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rk3588 import gguf as files
from rk3588 import sampling
from rk3588.errors import CheckpointError, WrongModel
from rk3588.families import Family
from rkconvert.architectures import gguf_metadata
from rkconvert.architectures.model import (
    EMBEDDING,
    OUTPUT,
    ROPE_FACTORS,
    ROPE_LONG_FACTORS,
    ROPE_SHORT_FACTORS,
    ModelConfig,
)
from rkconvert.architectures.names import Names
from rkconvert.tokenizers.gguf_metadata import read_vocabulary
from rkconvert.tokenizers.tokenizer_json import obstacle
from rkconvert.tokenizers.vocabulary import Vocabulary

from .base import Checkpoint, Source, SourceTensor, our_tensors, vocabulary_or_note

CONFIGURATION = (ROPE_FACTORS, ROPE_SHORT_FACTORS, ROPE_LONG_FACTORS)  # tensors whose values say what the model is


class Header(NamedTuple):
    """Metadata by key, tensors by name with their shapes as (N, K), and the files they lie in."""

    metadata: dict[str, Any]
    tensors: dict[str, SourceTensor]
    files: tuple[Path, ...]


def read(path: Path) -> Source:
    """The model in ``path``; CheckpointError says what is wrong with it or not supported."""
    metadata, found, parts = read_headers(path)
    family = gguf_metadata.family_of(metadata.get("general.architecture"), str(path))
    embedding = found.get(EMBEDDING)
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(f"{path} lacks the tensor {EMBEDDING}: is it a language model?")
    config = _config(metadata, found, path, embedding.shape[0])
    vocabulary = read_vocabulary(metadata, path, config.vocab_size)
    wishes, remarks = sampling.of_gguf(metadata, str(path))
    return Source(
        path=path,
        kind="gguf",
        architecture=family.name,
        family=family,
        config=config,
        vocabulary=vocabulary,
        tensors=_known(family, config, found, path),
        files=parts,
        shape=config.shape(path.name),
        long_rope=bool(config.rope.scaling.long_factors),
        licence=gguf_metadata.stated_licence(metadata),
        notes=(*vocabulary.notes, *_not_written(vocabulary), *remarks),
        sampling=wishes,
    )


def read_any(path: Path) -> Checkpoint:
    """The model in ``path``, whatever its architecture; of a known family, what ``read`` would say without refusing."""
    metadata, found, parts = read_headers(path)
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or not found:
        raise CheckpointError(f"{path} holds no model: it names no architecture, or has no tensors")
    embedding = found.get(EMBEDDING)
    rows = embedding.rows if embedding else 0
    vocabulary, notes = vocabulary_or_note(lambda: read_vocabulary(metadata, path, rows))
    notes += _not_written(vocabulary) if vocabulary else ()
    try:
        shape = _config(metadata, found, path, rows).shape(path.name)
    except CheckpointError:
        if architecture == "llama":  # rkllm-toolkit would convert it without what is refused here
            raise
        shape = None  # a family that is not known here is no reason to refuse a model
    wishes, remarks = sampling.of_gguf(metadata, str(path))
    return Checkpoint(
        path=path,
        kind="gguf",
        architecture=architecture,
        tensors=found,
        files=parts,
        vocabulary=vocabulary,
        shape=shape,
        long_rope=ROPE_LONG_FACTORS in found,
        licence=gguf_metadata.stated_licence(metadata),
        notes=(*notes, *remarks),
        sampling=wishes,
    )


def _config(metadata: dict[str, Any], found: dict[str, SourceTensor], path: Path, rows: int) -> ModelConfig:
    config = gguf_metadata.read_config(metadata, str(path), vocab_size=rows, tied=OUTPUT not in found)
    half = config.rope.dims // 2
    factors = {name: _factors(found[name], half) for name in CONFIGURATION if name in found}
    return gguf_metadata.with_rope_factors(gguf_metadata.with_biases(config, found), factors, metadata, str(path))


def _known(family: Family, config: ModelConfig, found: dict[str, SourceTensor], path: Path) -> dict[str, SourceTensor]:
    """Our tensors in those of the file, those whose rows llama.cpp interleaves marked as such."""
    ours = our_tensors(config, Names(family, config, gguf=True), found, path, CONFIGURATION)
    if not family.gguf_interleaved:
        return ours
    return {name: replace(tensor, heads=config.heads_of(name)) for name, tensor in ours.items()}


def _not_written(vocabulary: Vocabulary) -> tuple[str, ...]:
    reason = obstacle(vocabulary)
    return (f"no tokenizer.json is written, for it would give other tokens: {reason}",) if reason else ()


def _factors(tensor: SourceTensor, count: int) -> tuple[float, ...]:
    if tensor.kind != "F32" or tensor.shape != (count,):
        raise CheckpointError(
            f"{tensor.file}: tensor {tensor.name} is {tensor.kind} {list(tensor.shape)}, expected F32 [{count}]"
        )
    with tensor.file.open("rb") as file:
        file.seek(tensor.offset)
        values = np.frombuffer(file.read(tensor.nbytes), "<f4")
    if not (np.isfinite(values) & (values > 0)).all():
        raise CheckpointError(f"{tensor.file}: tensor {tensor.name} has a value that is not above zero")
    return tuple(float(v) for v in values)


def read_headers(path: Path) -> Header:
    """Everything before the tensors' data, with each tensor checked to lie inside its file. ``path`` may be a part of
    a model, whose other parts lie beside it."""
    return _header(path, files.read(path))


def read_header(path: Path) -> Header:
    """The same of one file by itself."""
    return _header(path, files.read_file(path))


def _header(path: Path, model: files.Model) -> Header:
    if "rksim.version" in model.metadata:
        raise WrongModel(f"{path} is a converted artifact already: give the model that it was made from")
    sizes = {file: file.stat().st_size for file in model.files}
    tensors = {name: _tensor(info) for name, info in model.tensors.items()}
    for tensor in tensors.values():
        if tensor.offset + tensor.nbytes > sizes[tensor.file]:
            raise CheckpointError(
                f"{tensor.file} is truncated: tensor {tensor.name} ends at byte {tensor.offset + tensor.nbytes}, the "
                f"file has {sizes[tensor.file]}: download it again"
            )
    return Header(model.metadata, tensors, model.files)


def _tensor(info: files.TensorInfo) -> SourceTensor:
    import gguf

    where = f"{info.file}: tensor {info.name}"
    try:
        kind = gguf.GGMLQuantizationType(info.kind)
    except ValueError:
        raise CheckpointError(f"{where} has the unknown type {info.kind}; known are {', '.join(readable())}") from None
    if kind.name not in readable():
        raise CheckpointError(
            f"{where} has type {kind.name}, which the gguf package cannot dequantise; it can {', '.join(readable())}: "
            "convert from another file of the model"
        )
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    dims = info.dims
    while len(dims) > 2 and dims[-1] == 1:  # some writers give every tensor four dimensions
        dims = dims[:-1]
    if not dims or dims[0] % block or 0 in dims or len(dims) > 2:
        blocks = f", which come in blocks of {block}" if block > 1 else ""
        raise CheckpointError(f"{where} of type {kind.name}{blocks} cannot have the dimensions {list(info.dims)}")
    nbytes = math.prod(dims) // block * block_bytes
    return SourceTensor(info.name, kind.name, dims[::-1], info.file, info.offset, nbytes)


@functools.cache
def readable() -> tuple[str, ...]:
    """The types that the gguf package dequantises, by name."""
    import gguf

    found = []
    for kind, (_, block_bytes) in gguf.GGML_QUANT_SIZES.items():
        try:
            gguf.quants.dequantize(np.zeros((1, block_bytes), np.uint8), kind)
        except NotImplementedError:
            continue
        found.append(kind.name)
    return tuple(found)
