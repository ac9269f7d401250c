"""The shape of whatever rkconvert takes, for predictions: GGUF files, folders, and names on the hub."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from rk3588 import families
from rk3588.errors import CheckpointError, UsageError
from rk3588.shape import Shape, from_config

from .sources import hub
from .sources.base import Checkpoint
from .sources.gguf_file import read_headers
from .sources.opening import open_checkpoint

# config.json's keys, as GGUF has them behind the architecture's name.
_KEYS = {
    "hidden_size": "embedding_length", "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv", "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length", "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
}  # fmt: skip


def load(model: str) -> Shape:
    """The shape of MODEL as ``rkconvert build`` takes it; of its weights, at most the headers are read."""
    if os.path.lexists(model):
        source = _opened(Path(model))
    else:
        wanted = hub.parse(model)
        if wanted is None:
            raise UsageError(
                f"there is no {model[:300]}: give a bundle, a Hugging Face folder or its config.json, a GGUF file, or "
                "USER/REPO on the Hugging Face hub"
            )
        source = hub.peek(hub.find(wanted), _opened)
    if source.shape is None:
        raise CheckpointError(
            f"{model}: {source.architecture} is no family that predictions know: they know {families.predicted()}"
        )
    return source.shape


def _opened(path: Path) -> Checkpoint:
    source = open_checkpoint(path)
    if source.shape is None and source.kind == "gguf" and families.of_gguf(source.architecture):
        return replace(source, shape=_of_gguf(path, source.architecture))
    return source


def _of_gguf(path: Path, architecture: str) -> Shape:
    metadata, tensors, _ = read_headers(path)
    embedding = tensors.get("token_embd.weight")
    config = {
        "model_type": architecture,
        "vocab_size": metadata.get(f"{architecture}.vocab_size", embedding.rows if embedding else None),
        "tie_word_embeddings": "output.weight" not in tensors,
        **{ours: metadata.get(f"{architecture}.{theirs}") for ours, theirs in _KEYS.items()},
    }
    return from_config(config, path, names={}, name=path.name)
