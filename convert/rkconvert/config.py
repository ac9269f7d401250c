"""One description of a Llama, from a Hugging Face ``config.json`` or from GGUF metadata."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rk3588.errors import CheckpointError
from rk3588.gguf import uniform
from rk3588.shape import FAMILIES, Shape

from .toolkit.options import ARCHITECTURES, GGUF_ARCHITECTURES

FAMILY = "the Llama family (Llama 2 to 3.2, TinyLlama, SmolLM2)"
_MOST = {"layers": 4096, "heads": 4096, "kv_heads": 4096, "head_dim": 4096, "vocab_size": 1 << 24}
_MOST_SIDE = 1 << 20  # what the runtime takes of any other size, and far above any model

# Canonical names are llama.cpp's, which the artifact uses too.
EMBEDDING, OUTPUT, OUTPUT_NORM = "token_embd.weight", "output.weight", "output_norm.weight"
ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class ModelConfig:
    """Shape and constants of a model. ``rope_factors`` divide the inverse frequencies, ``head_dim / 2`` of them."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    norm_eps: float
    rope_theta: float
    tied: bool
    rope_factors: tuple[float, ...] | None = None

    def shape(self, name: str) -> Shape:
        """What predictions need to know of it."""
        return Shape(
            name=name,
            layers=self.layers,
            hidden=self.hidden,
            intermediate=self.intermediate,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            vocab=self.vocab_size,
            tied=self.tied,
            context=self.context_length,
            extras=2 * self.hidden,
        )

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Every weight such a model has, by canonical name, with its shape: (N, K) or (N,)."""
        h, q, kv = self.hidden, self.heads * self.head_dim, self.kv_heads * self.head_dim
        found: dict[str, tuple[int, ...]] = {EMBEDDING: (self.vocab_size, h)}
        for i in range(self.layers):
            b = f"blk.{i}."
            found[f"{b}attn_norm.weight"] = (h,)
            found[f"{b}attn_q.weight"] = (q, h)
            found[f"{b}attn_k.weight"] = (kv, h)
            found[f"{b}attn_v.weight"] = (kv, h)
            found[f"{b}attn_output.weight"] = (h, q)
            found[f"{b}ffn_norm.weight"] = (h,)
            found[f"{b}ffn_gate.weight"] = (self.intermediate, h)
            found[f"{b}ffn_up.weight"] = (self.intermediate, h)
            found[f"{b}ffn_down.weight"] = (h, self.intermediate)
        found[OUTPUT_NORM] = (h,)
        if not self.tied:
            found[OUTPUT] = (self.vocab_size, h)
        return found


class Fields:
    """Typed access to a mapping read from a file: what is missing or of the wrong kind is one clear sentence."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = values, where

    def get(self, key: str) -> Any:
        return self.values.get(key)

    def whole(self, key: str, default: int | None = None, most: int = _MOST_SIDE) -> int:
        value = self.values.get(key)
        value = default if value is None else value
        if value is None:
            raise CheckpointError(f"{self.where} lacks {key!r}, which a Llama needs")
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise CheckpointError(f"{self.where}: {key!r} is {value!r}, expected a whole number from 1 to {most}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.values.get(key)
        value = default if value is None else value
        if value is None:
            raise CheckpointError(f"{self.where} lacks {key!r}, which a Llama needs")
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 3e38:
            raise CheckpointError(f"{self.where}: {key!r} is {value!r}, expected a number above zero")
        return float(value)


def from_huggingface(settings: Mapping[str, Any], where: str) -> ModelConfig:
    """From the contents of ``config.json``; CheckpointError names what this version cannot convert."""
    fields = Fields(settings, where)
    _refuse_others(fields)
    hidden, heads = fields.whole("hidden_size"), fields.whole("num_attention_heads", most=_MOST["heads"])
    rope = _mapping(fields, "rope_parameters")  # transformers 5 keeps rope_theta in there
    scaling = _mapping(fields, "rope_scaling") or rope
    theta = Fields(rope, where).number("rope_theta", fields.number("rope_theta", 10000.0))
    head_dim = fields.whole("head_dim", hidden // heads or 1, _MOST["head_dim"])
    config = ModelConfig(
        layers=fields.whole("num_hidden_layers", most=_MOST["layers"]),
        hidden=hidden,
        intermediate=fields.whole("intermediate_size"),
        heads=heads,
        kv_heads=fields.whole("num_key_value_heads", heads, _MOST["kv_heads"]),
        head_dim=head_dim,
        vocab_size=fields.whole("vocab_size", most=_MOST["vocab_size"]),
        context_length=fields.whole("max_position_embeddings", 2048, 1 << 30),
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope_theta=theta,
        tied=fields.get("tie_word_embeddings") is True,
        rope_factors=rope_factors(scaling, head_dim, theta, where),
    )
    return _checked(config, where)


def _refuse_others(fields: Fields) -> None:
    architectures = fields.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and architectures else fields.get("model_type")
    if name not in ("LlamaForCausalLM", "llama") or fields.get("model_type") not in (None, "llama"):
        raise CheckpointError(_other_family(fields.where, name, ARCHITECTURES, fields.get("model_type")))
    for key in ("attention_bias", "mlp_bias"):
        if fields.get(key):
            raise CheckpointError(f"{fields.where}: {key} is set, and linear layers with a bias are not supported")
    if fields.get("hidden_act") not in (None, "silu"):
        raise CheckpointError(f"{fields.where}: hidden_act is {fields.get('hidden_act')!r}, only 'silu' is supported")
    if fields.get("partial_rotary_factor") not in (None, 1):
        raise CheckpointError(f"{fields.where}: partial_rotary_factor is not supported: RoPE must turn whole heads")
    refuse_quantised(fields)


def _other_family(where: str, name: Any, known: Sequence[str], model_type: Any) -> str:
    """What the simulated runtime lacks, rkllm-toolkit may take: then the way to a board is told."""
    what = "is not an architecture this version converts for the simulated runtime"
    told = f"{where}: {name!r} {what}: it takes {FAMILY}"
    ways = ["--target rk3588 alone, without --lora, converts it for a board"] if name in known else []
    if isinstance(model_type, str) and model_type in FAMILIES:
        ways.append("rk3588 predict says how fast it would be there")
    return f"{told}; {', and '.join(ways)}" if ways else f"{told}, and rkllm-toolkit 1.1.1 does not know it either"


def refuse_quantised(fields: Fields) -> None:
    """A checkpoint of 4- or 8-bit weights has lost what a conversion needs."""
    if quantised := fields.get("quantization_config"):
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise CheckpointError(
            f"{fields.where}: the model is quantised already ({method}): convert the original instead"
        )


def _mapping(fields: Fields, key: str) -> Mapping[str, Any]:
    value = fields.get(key)
    if value is not None and not isinstance(value, dict):
        raise CheckpointError(f"{fields.where}: {key!r} is {value!r}, expected an object or null")
    return value or {}


def stated_licence(metadata: Mapping[str, Any]) -> str:
    """What a GGUF file says its licence is: an identifier, or "" for nothing that could be one."""
    value = metadata.get("general.license")
    return value if isinstance(value, str) and re.fullmatch(r"[\w.+-]{1,64}", value) else ""


def from_gguf(metadata: Mapping[str, Any], where: str, *, vocab_size: int, tied: bool) -> ModelConfig:
    """From GGUF metadata, as llama.cpp reads them; RoPE factors that stand in a tensor are the caller's to add.

    A setting that may change what the model computes and is not known here is refused.
    """
    name = metadata.get("general.architecture")
    if name != "llama":
        raise CheckpointError(_other_family(where, name, GGUF_ARCHITECTURES, name))
    settings = {k.removeprefix("llama."): uniform(v) for k, v in metadata.items() if k.startswith("llama.")}
    fields = Fields(settings, where)
    if fields.get("expert_count"):
        raise CheckpointError(f"{where}: a mixture of experts is not supported: this version takes {FAMILY}")
    hidden, heads = fields.whole("embedding_length"), fields.whole("attention.head_count", most=_MOST["heads"])
    head_dim = fields.whole("attention.key_length", hidden // heads or 1, _MOST["head_dim"])
    for key in ("attention.value_length", "rope.dimension_count"):
        if fields.whole(key, head_dim) != head_dim:
            raise CheckpointError(
                f"{where}: {key} is {fields.get(key)}, only the head's size ({head_dim}) is supported"
            )
    context = fields.whole("context_length", most=1 << 30)
    _refuse_unknown(fields, head_dim, context)
    theta = fields.number("rope.freq_base", 10000.0)
    config = ModelConfig(
        layers=fields.whole("block_count", most=_MOST["layers"]),
        hidden=hidden,
        intermediate=fields.whole("feed_forward_length"),
        heads=heads,
        kv_heads=fields.whole("attention.head_count_kv", heads, _MOST["kv_heads"]),
        head_dim=head_dim,
        vocab_size=vocab_size,
        context_length=context,
        norm_eps=fields.number("attention.layer_norm_rms_epsilon"),
        rope_theta=theta,
        tied=tied,
        rope_factors=rope_factors(_gguf_scaling(fields), head_dim, theta, where),
    )
    return _checked(config, where)


def _gguf_scaling(fields: Fields) -> dict[str, Any]:
    """As llama.cpp has it: linear where no type is given, by 1 where no factor is. Files of 2023 call the factor
    ``rope.scale_linear``."""
    kind = fields.get("rope.scaling.type")
    if kind not in (None, "linear", "none"):
        raise CheckpointError(
            f"{fields.where}: RoPE scaling {kind!r} (rope.scaling.type) is not supported, only 'linear', 'none' and "
            f"the tensor {ROPE_FACTORS}"
        )
    key = next((k for k in ("rope.scaling.factor", "rope.scale_linear") if fields.get(k) is not None), None)
    if kind == "none" or key is None or fields.get(key) in (0, 1):
        return {}
    return {"rope_type": "linear", "factor": fields.number(key)}


# What the runtime computes with, and what changes nothing in it.
_USED = {
    "block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "rope.dimension_count",
    "attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.scaling.type", "rope.scaling.factor",
    "rope.scale_linear",
}  # fmt: skip
_IDLE = {
    "tensor_data_layout",  # llama.cpp's order of Q and K, whatever it says
    "rope.scaling.finetuned", "rope.scaling.original_context_length",  # for YaRN, which is refused
    "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow", "rope.scaling.yarn_log_multiplier",
    "attention.layer_norm_epsilon",  # of a norm that a Llama has not
    "expert_used_count", "pooling_type",
}  # fmt: skip
# Settings that change nothing with these values, beside 0, "" and false.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "rope.scaling.attn_factor": (1,),
    "rope.scaling.yarn_attn_factor": (1, -1),
    "rope.scaling.yarn_ext_factor": (-1,),
    "rope.scaling.alpha": (1,),
    "logit_scale": (1,),
    "residual_scale": (1,),
    "embedding_scale": (1,),
}


def _refuse_unknown(fields: Fields, head_dim: int, context: int) -> None:
    """CheckpointError for a setting of a model that computes something else."""
    for key, value in sorted(fields.values.items()):
        if key in _USED or key in _IDLE or value in _NEUTRAL.get(key, ()):
            continue
        if key == "attention.causal" or (value and not _changes_nothing(key, value, head_dim, context)):
            shown = repr(value) if len(repr(value)) < 60 else f"a list of {len(value)}"
            raise CheckpointError(
                f"{fields.where}: llama.{key} is {shown}, which this version does not know and which may change what "
                f"the model computes: it takes {FAMILY}"
            )


def _changes_nothing(key: str, value: Any, head_dim: int, context: int) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    if key == "attention.scale":
        return math.isclose(value, head_dim**-0.5, rel_tol=1e-6)
    return key == "attention.sliding_window" and value >= context


def _checked(config: ModelConfig, where: str) -> ModelConfig:
    if config.heads % config.kv_heads or config.head_dim % 2:
        raise CheckpointError(
            f"{where}: {config.heads} heads cannot share {config.kv_heads} KV heads of size {config.head_dim}"
        )
    return config


def rope_factors(scaling: Mapping[str, Any], head_dim: int, theta: float, where: str) -> tuple[float, ...] | None:
    """The divisor of each inverse frequency under ``linear`` or ``llama3`` scaling; None without scaling."""
    kind = scaling.get("rope_type", scaling.get("type"))
    fields = Fields(scaling, f"{where}: RoPE scaling")
    if kind in (None, "default"):
        return None
    if kind == "linear":
        return (fields.number("factor"),) * (head_dim // 2)
    if kind != "llama3":
        raise CheckpointError(f"{where}: RoPE scaling {kind!r} is not supported, only 'linear' and 'llama3'")
    factor, context = fields.number("factor"), fields.number("original_max_position_embeddings")
    low, high = fields.number("low_freq_factor"), fields.number("high_freq_factor")
    if low >= high:
        raise CheckpointError(f"{where}: RoPE scaling has low_freq_factor {low:g}, not below high_freq_factor {high:g}")
    found = []
    for i in range(head_dim // 2):
        turns = context * theta ** (-2 * i / head_dim) / (2 * math.pi)  # within the original context
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        found.append(1 / ((1 - smooth) / factor + smooth))
    return tuple(found)
