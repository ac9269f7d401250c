"""The way back: a ``config.json`` for a model that was read from a GGUF file, which has none."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from rk3588.errors import CheckpointError
from rk3588.families import Family
from rkconvert.tokenizers.vocabulary import Vocabulary

from .config_json import read_config
from .model import NO_ROPE, ModelConfig, RopeScaling

_ACTIVATIONS = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}
# Where a GGUF file has factors by which frequencies are divided, they are Llama 3.1's or 3.2's, made of these numbers.
_LLAMA3 = {
    "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
}  # fmt: skip


def settings(config: ModelConfig, family: Family, vocabulary: Vocabulary, where: str) -> dict[str, Any]:
    """What config.json says of the model. CheckpointError where it would not say the same as ``config``: ``where`` is
    told as the file."""
    found: dict[str, Any] = {
        "hidden_size": config.hidden,
        "intermediate_size": config.intermediate,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": _ACTIVATIONS[config.activation],
        "rope_theta": config.rope.theta,
        "tie_word_embeddings": config.tied,
        **{key: set(kinds) <= config.biases for key, kinds in family.bias_keys.items()},
        **_scales(config, family),
    }
    if config.rope.dims != config.head_dim:
        found["partial_rotary_factor"] = config.rope.dims / config.head_dim
    if "no_rope_layer_interval" in family.defaults:
        found["no_rope_layers"] = [int(kind != NO_ROPE) for kind in config.rope.layers]
    if "sliding_window" in (*family.defaults, *family.known):
        found["sliding_window"] = max(config.windows, default=0) or None
    found |= _rope_scaling(config)
    found = {
        "architectures": [family.classes[0]],
        "model_type": family.model_types[0],
        **{family.keys.get(key, key): _shortest(value) for key, value in found.items()},
        # Of those that are left out, transformers takes the family's, which may be beyond this vocabulary.
        "bos_token_id": vocabulary.bos,
        "eos_token_id": list(vocabulary.eos_ids) or None,
        "pad_token_id": None,
    }
    differs = different(asdict(read_config(found, where)), asdict(replace(config, rotation="")))
    if differs:
        raise CheckpointError(f"{where}: its {differs} cannot be told in a config.json: take the Hugging Face model")
    return found


def _scales(config: ModelConfig, family: Family) -> dict[str, Any]:
    found = {}
    if family.embedding_scale not in ("", "sqrt hidden"):
        found[family.embedding_scale] = config.embedding_scale
    if family.residual_scale:
        found[family.residual_scale] = config.residual_scale * math.sqrt(config.layers)
    if family.logit_scale:
        found[family.logit_scale] = config.logit_scale * config.hidden
    return found


def _rope_scaling(config: ModelConfig) -> dict[str, Any]:
    scaling = config.rope.scaling
    if scaling == RopeScaling():
        return {}
    if scaling.long_factors:
        factors = {"short_factor": list(scaling.factors), "long_factor": list(scaling.long_factors)}
        values = {"type": "longrope", **factors, "attention_factor": scaling.attention_factor}
        return {"rope_scaling": values, "original_max_position_embeddings": scaling.short_context}
    largest = max(scaling.factors)
    if len(set(scaling.factors)) == 1:
        return {"rope_scaling": {"rope_type": "linear", "factor": largest}}
    return {"rope_scaling": {**_LLAMA3, "factor": largest}}


def _shortest(value: Any) -> Any:
    """Numbers of a GGUF file are of single precision: the fewest digits that mean them are what somebody wrote."""
    if isinstance(value, float):
        return float(str(np.float32(value)))
    if isinstance(value, list):
        return [_shortest(each) for each in value]
    return {key: _shortest(each) for key, each in value.items()} if isinstance(value, dict) else value


def different(found: Any, wanted: Any, name: str = "description") -> str:
    """The name of the first thing that is not the same, but for what single precision rounds; "" where all is."""
    if isinstance(found, dict):
        return next((differs for key in wanted if (differs := different(found[key], wanted[key], key))), "")
    if isinstance(found, float) and isinstance(wanted, (float, int)):
        return "" if math.isclose(found, wanted, rel_tol=1e-5) else name
    if isinstance(found, tuple) and isinstance(wanted, tuple) and len(found) == len(wanted):
        return next((d for pair in zip(found, wanted, strict=True) if (d := different(*pair, name))), "")
    return "" if found == wanted else name
