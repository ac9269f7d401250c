"""Writes ``model.sim.gguf`` (docs/sim-gguf.md), from its first byte to its last: a header from the gguf package, tensor
data at known offsets, checksums."""

from __future__ import annotations

import errno
import io
import logging
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rk3588.errors import TargetError
from rk3588.quant import mixed
from rkconvert.architectures.model import ModelConfig
from rkconvert.plan import ALIGNMENT, Artifact, OutTensor
from rkconvert.sources.base import Array
from rkconvert.tokenizers.vocabulary import Vocabulary

from .crc import combine
from .direct_file import DirectFile
from .sha256 import Bytes, Sha256

VERSION = 3
ARCHITECTURE = "rksim"  # a description of features, whatever family the model is of
_KEY_COUNT = 16  # where a GGUF file has it
_HEADER_CRC = "rksim.header_crc32"


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


def _value_offset(header: bytearray, key: str) -> int:
    """Where a key's value begins, behind its type. Our keys come before any text of the model's."""
    encoded = len(key).to_bytes(8, "little") + key.encode()
    return header.index(encoded) + len(encoded) + 4


class Packed(NamedTuple):
    """Metadata as it stands in a file."""

    keys: int
    data: bytes


def pack_vocabulary(vocabulary: Vocabulary) -> Packed:
    """A tokenizer's metadata, the same in every artifact and slow to make: half a second with 128,000 tokens."""
    import gguf
    from gguf.gguf_writer import WriterState

    writer = gguf.GGUFWriter(None, ARCHITECTURE)
    writer.kv_data[0].clear()  # the architecture
    _add_vocabulary(writer, vocabulary)
    buffer = io.BytesIO()
    writer.fout, writer.state = [buffer], WriterState.HEADER
    writer.write_kv_data_to_file()
    return Packed(len(writer.kv_data[0]), buffer.getvalue())


def make_header(
    name: str,
    config: ModelConfig,
    vocabulary: Vocabulary,
    artifact: Artifact,
    packed: Packed | None = None,
    hybrid_rate: float = 0.0,
) -> bytes:
    """Everything before the tensor data, padded. ``packed`` is ``pack_vocabulary``'s."""
    import gguf

    writer = _new_writer()
    scheme = artifact.scheme
    writer.add_string("rksim.dtype", scheme.name)
    if artifact.grouped is None:
        writer.add_uint32("rksim.group_size", scheme.group_size)
    else:
        writer.add_uint32("rksim.group_size", mixed(scheme)[1].group_size)
        writer.add_float32("rksim.hybrid_rate", hybrid_rate)
    _add_ends(writer, vocabulary)
    writer.add_name(name)
    _add_shape(writer, config)
    types = gguf.GGMLQuantizationType
    for tensor in artifact.tensors:
        # The dtype argument is only looked at where raw_dtype is None.
        writer.add_tensor_info(tensor.name, tensor.shape, None, tensor.nbytes, raw_dtype=types[tensor.kind])
    return _assembled(writer, packed or pack_vocabulary(vocabulary))


def write_vocabulary(path: Path, name: str, vocabulary: Vocabulary) -> None:
    """``tokenizer.gguf``: the artifact's tokenizer without its tensors, for counting tokens on a board."""
    path.write_bytes(vocabulary_file(name, vocabulary))


def vocabulary_file(name: str, vocabulary: Vocabulary) -> bytes:
    writer = _new_writer()
    _add_ends(writer, vocabulary)
    writer.add_name(name)
    return _assembled(writer, pack_vocabulary(vocabulary))


def _new_writer() -> Any:
    import gguf

    logging.getLogger("gguf").setLevel(logging.WARNING)
    writer = gguf.GGUFWriter(None, ARCHITECTURE)
    writer.add_custom_alignment(ALIGNMENT)
    writer.add_uint32("rksim.version", VERSION)
    writer.add_uint32(_HEADER_CRC, 0)
    return writer


def _add_ends(writer: Any, vocabulary: Vocabulary) -> None:
    import gguf

    if vocabulary.eos_ids:
        array, int32 = gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.INT32
        writer.add_key_value("rksim.eos_token_ids", list(vocabulary.eos_ids), array, sub_type=int32)


def _assembled(writer: Any, packed: Packed) -> bytes:
    """The file up to its tensors' data, with the header's checksum."""
    from gguf.gguf_writer import WriterState

    buffer = io.BytesIO()
    writer.fout, writer.state = [buffer], WriterState.EMPTY
    writer.write_header_to_file()
    buffer.seek(_KEY_COUNT)
    buffer.write(struct.pack("<Q", len(writer.kv_data[0]) + packed.keys))
    writer.write_kv_data_to_file()
    buffer.write(packed.data)
    writer.write_ti_data_to_file()
    header = bytearray(buffer.getvalue() + bytes(-buffer.tell() % ALIGNMENT))
    own = _value_offset(header, _HEADER_CRC)
    header[own : own + 4] = zlib.crc32(header).to_bytes(4, "little")
    return bytes(header)


def _add_shape(writer: Any, config: ModelConfig) -> None:
    writer.add_string(f"{ARCHITECTURE}.family", config.family)
    writer.add_block_count(config.layers)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.hidden)
    writer.add_feed_forward_length(config.intermediate)
    writer.add_vocab_size(config.vocab_size)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_rope_dimension_count(config.rope.dims)
    (writer.add_layer_norm_eps if config.layer_norm else writer.add_layer_norm_rms_eps)(config.norm_eps)
    writer.add_rope_freq_base(config.rope.theta)
    for key, value in config.features().items():
        _add_feature(writer, f"{ARCHITECTURE}.{key}", value)


def _add_feature(writer: Any, key: str, value: Any) -> None:
    import gguf

    if isinstance(value, tuple):
        writer.add_key_value(key, list(value), gguf.GGUFValueType.ARRAY, sub_type=gguf.GGUFValueType.UINT32)
    else:
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add[type(value)](key, value)


def _add_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    import gguf

    writer.add_tokenizer_model(vocabulary.model)
    if vocabulary.pre:
        writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_key_value(
        "tokenizer.ggml.token_type", vocabulary.types, gguf.GGUFValueType.ARRAY, sub_type=gguf.GGUFValueType.INT32
    )
    writer.add_array("tokenizer.ggml.merges", vocabulary.merges)
    if vocabulary.scores:
        writer.add_key_value(
            "tokenizer.ggml.scores", vocabulary.scores, gguf.GGUFValueType.ARRAY, sub_type=gguf.GGUFValueType.FLOAT32
        )
    for key, token in (("bos", vocabulary.bos), ("eos", vocabulary.eos), ("unknown", vocabulary.unknown)):
        if token is not None:
            writer.add_uint32(f"tokenizer.ggml.{key}_token_id", token)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_space_prefix(vocabulary.add_space_prefix)
    if vocabulary.nfc != (vocabulary.pre == "qwen2"):  # where a file says nothing
        writer.add_bool("rksim.nfc", vocabulary.nfc)
    if vocabulary.ignore_merges != (vocabulary.pre == "llama-bpe"):
        writer.add_bool("rksim.ignore_merges", vocabulary.ignore_merges)
    lists = {"lstrip": vocabulary.lstrip, "rstrip": vocabulary.rstrip, "normalised": vocabulary.normalised}
    for key, ids in lists.items():
        if ids:
            writer.add_key_value(
                f"rksim.{key}_token_ids", list(ids), gguf.GGUFValueType.ARRAY, sub_type=gguf.GGUFValueType.INT32
            )
    if vocabulary.chat_template:
        writer.add_chat_template(vocabulary.chat_template)
