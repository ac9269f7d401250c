"""The header of ``model.sim.gguf`` and of ``tokenizer.gguf`` (docs/sim-gguf.md): what a model is, and its tokenizer."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rk3588.quant import mixed
from rkconvert.architectures.model import ModelConfig
from rkconvert.native_template import native_template
from rkconvert.tokenizers.vocabulary import Vocabulary

from . import gguf_writer
from .gguf_writer import BOOL, FLOAT32, INT32, METADATA_AT, STRING, UINT32, Metadata, TensorInfo
from .layout import ALIGNMENT, Artifact, ArtifactTensor

VERSION = 3
ARCHITECTURE = "rksim"  # a description of features, whatever family the model is of


def make_header(
    name: str,
    config: ModelConfig,
    vocabulary: Vocabulary,
    artifact: Artifact,
    tokenizer: Metadata | None = None,
    hybrid_rate: float = 0.0,
) -> bytes:
    """Everything before the tensor data, padded. ``tokenizer`` is what ``tokenizer_metadata`` makes."""
    own = Metadata()
    scheme = artifact.scheme
    own.add("rksim.dtype", STRING, scheme.name)
    if artifact.grouped is None:
        own.add("rksim.group_size", UINT32, scheme.group_size)
    else:
        own.add("rksim.group_size", UINT32, mixed(scheme)[1].group_size)
        own.add("rksim.hybrid_rate", FLOAT32, hybrid_rate)
    _add_end_tokens(own, vocabulary)
    own.add("general.name", STRING, name)
    _add_shape(own, config)
    _add_chat(own, vocabulary)
    own.extend(tokenizer or tokenizer_metadata(vocabulary))
    return _with_checksum(own, artifact.tensors)


def tokenizer_file(name: str, vocabulary: Vocabulary) -> bytes:
    """``tokenizer.gguf``: the artifact's tokenizer without its tensors, for counting tokens on a board."""
    own = Metadata()
    _add_end_tokens(own, vocabulary)
    own.add("general.name", STRING, name)
    own.extend(tokenizer_metadata(vocabulary))
    return _with_checksum(own, ())


def write_tokenizer(path: Path, name: str, vocabulary: Vocabulary) -> None:
    path.write_bytes(tokenizer_file(name, vocabulary))


def _with_checksum(own: Metadata, tensors: Sequence[ArtifactTensor]) -> bytes:
    """``own`` behind the keys of every file of ours, among which is the CRC-32 of the header with a zero there."""
    metadata = Metadata()
    metadata.add("general.architecture", STRING, ARCHITECTURE)
    metadata.add("general.alignment", UINT32, ALIGNMENT)
    metadata.add("rksim.version", UINT32, VERSION)
    checksum = METADATA_AT + metadata.add("rksim.header_crc32", UINT32, 0)
    metadata.extend(own)
    found = gguf_writer.header(metadata, (TensorInfo(t.name, t.kind, t.shape, t.offset) for t in tensors))
    found += bytes(-len(found) % ALIGNMENT)
    found[checksum : checksum + 4] = zlib.crc32(found).to_bytes(4, "little")
    return bytes(found)


def _add_end_tokens(metadata: Metadata, vocabulary: Vocabulary) -> None:
    metadata.add_list("rksim.eos_token_ids", INT32, vocabulary.eos_ids)


def _add_chat(metadata: Metadata, vocabulary: Vocabulary) -> None:
    chat = native_template(vocabulary)
    if chat is None:
        return
    if chat.refused is not None:
        metadata.add("rksim.chat.refused", STRING, chat.refused)
        return
    for key in ("system", "prefix", "postfix", "between", "thinking"):
        if (text := getattr(chat, key)) is not None:
            metadata.add(f"rksim.chat.{key}", STRING, text)
    metadata.add_list("rksim.chat.tools", STRING, chat.tools)


def _add_shape(metadata: Metadata, config: ModelConfig) -> None:
    values: dict[str, Any] = {
        "family": config.family,
        "block_count": config.layers,
        "context_length": config.context_length,
        "embedding_length": config.hidden,
        "feed_forward_length": config.intermediate,
        "vocab_size": config.vocab_size,
        "attention.head_count": config.heads,
        "attention.head_count_kv": config.kv_heads,
        "attention.key_length": config.head_dim,
        "rope.dimension_count": config.rope.dims,
        f"attention.layer_norm_{'' if config.layer_norm else 'rms_'}epsilon": float(config.norm_eps),
        "rope.freq_base": float(config.rope.theta),
    }
    kinds = {bool: BOOL, int: UINT32, float: FLOAT32, str: STRING}
    for key, value in [*values.items(), *config.features().items()]:
        if isinstance(value, tuple):
            metadata.add_list(f"{ARCHITECTURE}.{key}", UINT32, value)
        else:
            metadata.add(f"{ARCHITECTURE}.{key}", kinds[type(value)], value)


def tokenizer_metadata(vocabulary: Vocabulary) -> Metadata:
    """A tokenizer's keys, the same in every artifact and slow to make with 128,000 tokens."""
    found = Metadata()
    found.add("tokenizer.ggml.model", STRING, vocabulary.model)
    if vocabulary.pre:
        found.add("tokenizer.ggml.pre", STRING, vocabulary.pre)
    found.add_list("tokenizer.ggml.tokens", STRING, vocabulary.tokens)
    found.add_list("tokenizer.ggml.token_type", INT32, vocabulary.types)
    found.add_list("tokenizer.ggml.merges", STRING, vocabulary.merges)
    found.add_list("tokenizer.ggml.scores", FLOAT32, vocabulary.scores)
    for key, token in (("bos", vocabulary.bos), ("eos", vocabulary.eos), ("unknown", vocabulary.unknown)):
        if token is not None:
            found.add(f"tokenizer.ggml.{key}_token_id", UINT32, token)
    found.add("tokenizer.ggml.add_bos_token", BOOL, vocabulary.add_bos)
    found.add("tokenizer.ggml.add_space_prefix", BOOL, vocabulary.add_space_prefix)
    if vocabulary.nfc != (vocabulary.pre == "qwen2"):  # where a file says nothing
        found.add("rksim.nfc", BOOL, vocabulary.nfc)
    if vocabulary.ignore_merges != (vocabulary.pre == "llama-bpe"):
        found.add("rksim.ignore_merges", BOOL, vocabulary.ignore_merges)
    lists = {"lstrip": vocabulary.lstrip, "rstrip": vocabulary.rstrip, "normalised": vocabulary.normalised}
    for key, ids in lists.items():
        found.add_list(f"rksim.{key}_token_ids", INT32, ids)
    if vocabulary.chat_template:
        found.add("tokenizer.chat_template", STRING, vocabulary.chat_template)
    return found
