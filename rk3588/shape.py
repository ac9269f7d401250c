"""The shape of a transformer, from its ``config.json`` or its bundle alone: parameter counts and KV bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import bundle, files
from .errors import CheckpointError, UsageError

_MOST = 1 << 31  # no size in a config.json is larger; what is, is damage


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder of the Llama family. All counts are of parameters."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    context: int = 0  # the longest the model was trained for; 0: not said
    extras: int = 0  # biases and norms inside one layer
    family: str = "llama"  # its model_type

    @property
    def linear_params(self) -> int:
        """Weights of all linear layers, without embedding and lm_head."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = self.hidden * (2 * q + 2 * kv)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def lm_head_params(self) -> int:
        return self.vocab * self.hidden

    @property
    def total_params(self) -> int:
        """What ``model.num_parameters()`` of transformers says: a tied lm_head counts once."""
        embeddings = self.lm_head_params * (1 if self.tied else 2)
        return self.linear_params + embeddings + self.layers * self.extras + self.hidden

    @property
    def attention_width(self) -> int:
        """Columns of Q, all heads together."""
        return self.heads * self.head_dim

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of K and V in fp16 for one token."""
        return self.layers * 2 * self.kv_heads * self.head_dim * 2


@dataclass(frozen=True)
class _Family:
    """How one ``model_type`` differs: what its config leaves unsaid, and its parameters outside the matrices."""

    tied: bool = False  # where the config does not say
    qkv_bias: bool | None = False  # None: the config's attention_bias says, for the output projection as well
    norms: int = 2  # RMSNorms over the hidden size in a layer
    head_norms: int = 0  # RMSNorms over head_dim in a layer
    head_dim: int = 0  # where the config does not say; 0: hidden / heads
    names: Mapping[str, str] = field(default_factory=dict)  # the usual key, the config's key


_CHATGLM = {
    "num_hidden_layers": "num_layers",
    "intermediate_size": "ffn_hidden_size",
    "num_key_value_heads": "multi_query_group_num",
    "head_dim": "kv_channels",
    "vocab_size": "padded_vocab_size",
    "max_position_embeddings": "seq_length",
}
_MANIFEST = {
    "hidden_size": "hidden",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "num_hidden_layers": "layers",
    "intermediate_size": "intermediate",
    "max_position_embeddings": "context_length",
    "tie_word_embeddings": "tied",
}  # what rkbundle.json calls them
FAMILIES: dict[str, _Family] = {
    "llama": _Family(qkv_bias=None),
    "mistral": _Family(),
    "qwen2": _Family(qkv_bias=True),
    "qwen3": _Family(qkv_bias=None, head_norms=2),
    "phi3": _Family(),
    "gemma": _Family(tied=True, qkv_bias=None, head_dim=256),
    "gemma2": _Family(tied=True, qkv_bias=None, norms=4, head_dim=256),
    "internlm2": _Family(),
    "chatglm": _Family(qkv_bias=True, names=_CHATGLM),
}


def load(path: Path) -> Shape:
    """Shape of the model in a Hugging Face folder, its ``config.json``, or a bundle."""
    if path.is_dir() and (path / bundle.MANIFEST).is_file():
        manifest = bundle.read(path).manifest
        model = {"model_type": manifest["model"].get("architecture"), **manifest["model"]}
        return from_config(model, path / bundle.MANIFEST, names=_MANIFEST, name=manifest["name"])
    where = path / "config.json" if path.is_dir() else path
    try:
        config = files.read_json(where, files.SETTINGS, where.parent if path.is_dir() else None, CheckpointError)
    except FileNotFoundError:
        if not path.is_dir():
            raise UsageError(f"there is no {path}: give a Hugging Face model folder or a bundle") from None
        raise CheckpointError(
            f"{path} has no config.json and no {bundle.MANIFEST}: give a Hugging Face model folder or a bundle"
        ) from None
    return from_config(config, where)


def from_config(config: Any, where: Path, *, names: Mapping[str, str] | None = None, name: str | None = None) -> Shape:
    """Shape out of a parsed ``config.json``, whose path is ``where``; ``names``: what its usual keys are called."""
    if not isinstance(config, dict):
        raise CheckpointError(f"{where} holds no JSON object: it is not the config.json of a model")
    kind = config.get("model_type")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        raise CheckpointError(f"{where}: model_type {kind!r} is not known here; known are {', '.join(FAMILIES)}")
    read = _Reader(config, where, family.names if names is None else names)
    hidden, heads = read.size("hidden_size"), read.size("num_attention_heads")
    kv_heads = read.size("num_key_value_heads", heads)
    head_dim = read.size("head_dim", family.head_dim or hidden // heads)
    if not head_dim:
        raise CheckpointError(f"{where}: {heads} attention heads do not go into a hidden_size of {hidden}")
    if kv_heads > heads or heads % kv_heads:
        raise CheckpointError(f"{where}: {heads} attention heads cannot share {kv_heads} key-value heads")
    intermediate = read.size("intermediate_size")
    extras = _extras(family, read, hidden, intermediate, heads * head_dim, kv_heads * head_dim)
    return Shape(
        name=name or where.resolve().parent.name,
        layers=read.size("num_hidden_layers"),
        hidden=hidden,
        intermediate=intermediate,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=read.size("vocab_size"),
        tied=read.flag("tie_word_embeddings", family.tied),
        context=read.size("max_position_embeddings", 0),
        extras=extras + family.head_norms * head_dim,
        family=str(kind),
    )


def _extras(family: _Family, read: _Reader, hidden: int, intermediate: int, q: int, kv: int) -> int:
    """Parameters of a layer outside its matrices: norms over the hidden size, and biases."""
    count = family.norms * hidden
    if family.qkv_bias is None and read.flag("attention_bias", False):
        count += q + 2 * kv + hidden
    elif family.qkv_bias:
        count += q + 2 * kv
    if read.flag("mlp_bias", False):
        count += 2 * intermediate + hidden
    return count


@dataclass(frozen=True)
class _Reader:
    config: dict[str, Any]
    where: Path
    names: Mapping[str, str]

    def size(self, key: str, default: int | None = None) -> int:
        key = self.names.get(key, key)
        value = self.config.get(key)
        if value is None:
            if default is None:
                raise CheckpointError(f"{self.where} does not say {key}: is it the model's own?")
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < _MOST:
            raise CheckpointError(f"{self.where}: {key} is {value!r}; it has to be a whole number from 1 up")
        return value

    def flag(self, key: str, default: bool) -> bool:
        key = self.names.get(key, key)
        value = self.config.get(key, default)
        if not isinstance(value, bool):
            raise CheckpointError(f"{self.where}: {key} is {value!r}; it has to be true or false")
        return value
