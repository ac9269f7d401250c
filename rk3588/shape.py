"""The shape of a transformer, from its ``config.json`` or its bundle alone: parameter counts and KV bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import bundle, families, files
from .errors import CheckpointError, UsageError, WrongModel
from .families import Family

_MOST = 1 << 31  # no size in a config.json is larger; what is, is damage


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder. All counts are of parameters."""

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
    gated: bool = True  # two matrices before the MLP's activation, not one
    top_extras: int = 0  # parameters outside the layers beside the matrices and one norm

    @property
    def linear_params(self) -> int:
        """Weights of all linear layers, without embedding and lm_head."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = self.hidden * (2 * q + 2 * kv)
        return self.layers * (attention + (2 + self.gated) * self.hidden * self.intermediate)

    @property
    def lm_head_params(self) -> int:
        return self.vocab * self.hidden

    @property
    def total_params(self) -> int:
        """What ``model.num_parameters()`` of transformers says: a tied lm_head counts once."""
        embeddings = self.lm_head_params * (1 if self.tied else 2)
        return self.linear_params + embeddings + self.layers * self.extras + self.hidden + self.top_extras

    @property
    def attention_width(self) -> int:
        """Columns of Q, all heads together."""
        return self.heads * self.head_dim

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of K and V in fp16 for one token."""
        return self.layers * 2 * self.kv_heads * self.head_dim * 2


_MANIFEST = {
    "hidden_size": "hidden",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "num_hidden_layers": "layers",
    "intermediate_size": "intermediate",
    "max_position_embeddings": "context_length",
    "tie_word_embeddings": "tied",
}  # what rkbundle.json calls them


def load(path: Path) -> Shape:
    """Shape of the model in a Hugging Face folder, its ``config.json``, or a bundle."""
    if path.is_dir() and (path / bundle.MANIFEST).is_file():
        return of_manifest(bundle.read(path).manifest, path / bundle.MANIFEST)
    where = path / "config.json" if path.is_dir() else path
    try:
        config = files.read_json(where, files.SETTINGS, where.parent if path.is_dir() else None, CheckpointError)
    except FileNotFoundError:
        if not path.is_dir():
            raise UsageError(f"there is no {path}: give a Hugging Face model folder or a bundle") from None
        raise WrongModel(
            f"{path} has no config.json and no {bundle.MANIFEST}: give a Hugging Face model folder or a bundle"
        ) from None
    return from_config(config, where)


def of_manifest(manifest: Mapping[str, Any], where: Path) -> Shape:
    """Shape of a bundle's model, by its manifest, whose form is right."""
    model = {"model_type": manifest["model"].get("architecture"), **manifest["model"]}
    return from_config(model, where, names=_MANIFEST, name=manifest["name"])


def from_config(config: Any, where: Path, *, names: Mapping[str, str] | None = None, name: str | None = None) -> Shape:
    """Shape out of a parsed ``config.json``, whose path is ``where``; ``names``: what its usual keys are called."""
    if not isinstance(config, dict):
        raise CheckpointError(f"{where} holds no JSON object: it is not the config.json of a model")
    config = _language_model(config, where)
    kind = config.get("model_type")
    if kind is None:
        raise CheckpointError(f"{where} names no model_type: it is not the config.json of a model")
    family = families.of_model_type(kind) or families.of_gguf(kind)
    if family is None or family.unpredicted:
        raise CheckpointError(f"{where}: model_type {kind!r} is not known here; known are {families.predicted()}")
    sizes = family.sizes if names is None else {}  # a manifest says them all
    read = _Reader(config, where, family.keys if names is None else names, {**sizes, **family.defaults})
    hidden, heads = read.size("hidden_size"), read.size("num_attention_heads")
    kv_heads = read.size("num_key_value_heads", heads)
    head_dim = read.size("head_dim", hidden // heads)
    if not head_dim:
        raise CheckpointError(f"{where}: {heads} attention heads do not go into a hidden_size of {hidden}")
    if kv_heads > heads or heads % kv_heads:
        raise CheckpointError(f"{where}: {heads} attention heads cannot share {kv_heads} key-value heads")
    intermediate = read.size("intermediate_size")
    vocab, tied = read.size("vocab_size"), read.flag("tie_word_embeddings", False)
    rows = {
        "attn_q": heads * head_dim, "attn_k": kv_heads * head_dim, "attn_v": kv_heads * head_dim,
        "attn_output": hidden, "ffn_gate": intermediate, "ffn_up": intermediate, "ffn_down": hidden, "output": vocab,
    }  # fmt: skip
    biased = _biased(family, read, said=names is None)
    norms = (1 if family.parallel else 2) + 2 * family.post_norms
    extras = norms * hidden * (1 + family.layer_norm) + 2 * family.head_norms * head_dim
    return Shape(
        name=name or where.resolve().parent.name,
        layers=read.size("num_hidden_layers"),
        hidden=hidden,
        intermediate=intermediate,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=vocab,
        tied=tied,
        context=read.size("max_position_embeddings", 0),
        extras=extras + sum(rows[kind] for kind in biased - {"output"}),
        family=str(kind),
        gated=family.gated,
        top_extras=family.layer_norm * hidden + ("output" in biased) * vocab,
    )


def _language_model(config: dict[str, Any], where: Path) -> dict[str, Any]:
    """Of a model with images the settings of its language model."""
    classes = config.get("architectures")
    name = classes[0] if isinstance(classes, list) and classes else None
    family = families.of_class(name)
    if family is None or name not in family.text_of:
        return config
    text = config.get("text_config")
    if not isinstance(text, dict):
        raise CheckpointError(f"{where}: {name} has no text_config, which would say what its language model is")
    return {"model_type": family.model_types[0], **text}


def _biased(family: Family, read: _Reader, said: bool) -> set[str]:
    """The kinds of layers that have a bias; ``said``: the settings are a config.json's, which tells more of them."""
    found = set(family.biases)
    if not said:
        return found
    for key, kinds in family.bias_keys.items():
        found |= set(kinds) if read.flag(key, False) else set()
    return found


@dataclass(frozen=True)
class _Reader:
    config: dict[str, Any]
    where: Path
    names: Mapping[str, str]
    defaults: Mapping[str, Any]  # by the usual keys

    def size(self, key: str, default: int | None = None) -> int:
        theirs = self.names.get(key, key)
        # What the model was trained for is not to be guessed, and null is not what is left out.
        if key != "max_position_embeddings" and theirs not in self.config:
            default = self.defaults.get(key, default)
        key = theirs
        value = self.config.get(key)
        if value is None:
            if default is None:
                raise CheckpointError(f"{self.where} does not say {key}: is it the model's own?")
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < _MOST:
            raise CheckpointError(f"{self.where}: {key} is {value!r}; it has to be a whole number from 1 up")
        return value

    def flag(self, key: str, default: bool) -> bool:
        default = self.defaults.get(key, default)
        key = self.names.get(key, key)
        value = self.config.get(key, default)
        if not isinstance(value, bool):
            raise CheckpointError(f"{self.where}: {key} is {value!r}; it has to be true or false")
        return value
