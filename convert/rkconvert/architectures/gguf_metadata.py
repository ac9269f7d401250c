"""GGUF metadata as features of the transformer, as llama.cpp reads them; what is not known is refused by name.

llama.cpp's converter has folded some features into the weights (the 1 of Gemma's gains) and reordered others (the rows
of Q and K): ``families`` says which.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rk3588 import families
from rk3588.errors import CheckpointError
from rk3588.families import Family
from rk3588.gguf import uniform

from . import rope as ropes
from .config_json import checked, convertible, other_family
from .fields import MOST_CONTEXT, Fields, shown
from .model import BASE_ROPE, LOCAL_ROPE, NO_ROPE, ROPE_FACTORS, ModelConfig, Rope, RopeScaling

_MOST_LAYERS, _MOST_HEADS = 4096, 4096
_LOCAL_THETA = 10000.0  # of Gemma 3's layers with a window, where a file does not say
_LAYERS_OF_27B = {"gemma2": 46, "gemma3": 62}  # whose queries llama.cpp scales by hidden / heads
# What is computed with, and what changes nothing.
_USED = {
    "block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "rope.dimension_count",
    "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon", "rope.freq_base", "rope.scaling.type",
    "rope.scaling.factor", "rope.scale_linear", "rope.scaling.original_context_length", "rope.scaling.attn_factor",
    "attention.sliding_window", "attn_logit_softcapping", "final_logit_softcapping", "embedding_scale",
    "residual_scale", "logit_scale", "attention.scale", "rope.freq_base_swa", "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow", "rope.scaling.yarn_attn_factor", "attention.sliding_window_pattern",
}  # fmt: skip
_IDLE = {
    "tensor_data_layout",  # llama.cpp's order of Q and K, whatever it says
    "rope.scaling.finetuned", "rope.scaling.yarn_log_multiplier", "expert_used_count", "pooling_type",
    "attention.key_length_swa", "attention.value_length_swa", "rope.dimension_count_swa",  # equal to the others here
}  # fmt: skip
# Settings that change nothing with these values, beside 0, "" and false.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "rope.scaling.yarn_ext_factor": (-1, 1),
    "rope.scaling.alpha": (1,),
}


def stated_licence(metadata: Mapping[str, Any]) -> str:
    """What a GGUF file says its licence is: an identifier, or "" for nothing that could be one."""
    value = metadata.get("general.license")
    return value if isinstance(value, str) and re.fullmatch(r"[\w.+-]{1,64}", value) else ""


def family_of(name: Any, where: str) -> Family:
    """The family of ``general.architecture``; CheckpointError where it is none that is converted."""
    family = families.of_gguf(name)
    if family is None:
        raise other_family(where, name)
    return convertible(family, where)


def read_config(metadata: Mapping[str, Any], where: str, *, vocab_size: int, tied: bool) -> ModelConfig:
    """From GGUF metadata; RoPE factors that stand in tensors are the caller's to add (``with_rope_factors``)."""
    family = family_of(metadata.get("general.architecture"), where)
    prefix = f"{family.name}."
    settings = {k.removeprefix(prefix): uniform(v) for k, v in metadata.items() if k.startswith(prefix)}
    fields = Fields(settings, where)
    if fields.get("expert_count"):
        raise CheckpointError(f"{where}: a mixture of experts is not supported: {family.title} is taken without")
    hidden, heads = fields.whole("embedding_length"), fields.whole("attention.head_count", most=_MOST_HEADS)
    layers = fields.whole("block_count", most=_MOST_LAYERS)
    head_dim = fields.whole("attention.key_length", hidden // heads or 1, _MOST_HEADS)
    if fields.whole("attention.value_length", head_dim) != head_dim:
        raise CheckpointError(
            f"{where}: attention.value_length is {fields.get('attention.value_length')}, only the head's size "
            f"({head_dim}) is supported"
        )
    context = fields.whole("context_length", most=MOST_CONTEXT)
    _refuse_unknown(fields, family)
    norm = "attention.layer_norm_epsilon" if family.layer_norm else "attention.layer_norm_rms_epsilon"
    windows = _windows(fields, family, layers, context)
    config = ModelConfig(
        family=family.name,
        layers=layers,
        hidden=hidden,
        intermediate=fields.whole("feed_forward_length"),
        heads=heads,
        kv_heads=fields.whole("attention.head_count_kv", heads, _MOST_HEADS),
        head_dim=head_dim,
        vocab_size=vocab_size,
        context_length=context,
        norm_eps=fields.number(norm),
        tied=tied,
        rope=_rope(fields, family, head_dim, context, layers),
        layer_norm=family.layer_norm,
        head_norms=family.head_norms,
        post_norms=family.post_norms,
        parallel=family.parallel,
        gated=family.gated,
        activation=family.activation,
        biases=frozenset(family.biases),
        attention_scale=_attention_scale(fields, family, layers, hidden / heads, head_dim),
        attention_soft_cap=_soft_cap(fields, family, "attn_logit_softcapping"),
        logit_soft_cap=_soft_cap(fields, family, "final_logit_softcapping"),
        windows=windows,
        adapters_interleaved=family.gguf_interleaved,
    )
    return checked(replace(config, **_scales(fields, family, config)), where)


def with_biases(config: ModelConfig, names: Mapping[str, Any]) -> ModelConfig:
    """``config`` with the biases that the file has tensors of: GGUF has no setting for them."""
    kinds = {n.split(".")[-2] for n in names if n.endswith(".bias") and not n.split(".")[-2].endswith("norm")}
    return replace(config, biases=config.biases | kinds)


def with_rope_factors(config: ModelConfig, tensors: Mapping[str, tuple[float, ...]]) -> ModelConfig:
    """``config`` with the RoPE factors that stand in tensors of a file, by their names."""
    scaling = config.rope.scaling
    if ROPE_FACTORS in tensors:
        linear = scaling.factors or (1.0,) * len(tensors[ROPE_FACTORS])
        scaling = replace(scaling, factors=tuple(f * s for f, s in zip(tensors[ROPE_FACTORS], linear, strict=True)))
    if "rope_factors_short.weight" in tensors:
        scaling = replace(
            scaling,
            factors=tensors["rope_factors_short.weight"],
            long_factors=tensors.get("rope_factors_long.weight", ()),
        )
    return replace(config, rope=replace(config.rope, scaling=scaling))


def _refuse_unknown(fields: Fields, family: Family) -> None:
    for key, value in sorted(fields.values.items()):
        if key in _USED or key in _IDLE or value in _NEUTRAL.get(key, ()):
            continue
        if value or key == "attention.causal":
            raise CheckpointError(
                f"{fields.where}: {family.name}.{key} is {shown(value)}, which this version does not know for "
                f"{family.title} and which may change what the model computes"
            )


def _attention_scale(fields: Fields, family: Family, layers: int, width: float, head_dim: int) -> float | None:
    """GGUF files of Gemma's 27B do not say that their queries are scaled otherwise: llama.cpp knows by the layers."""
    scale = fields.number_or_none("attention.scale") if fields.get("attention.scale") else None
    if scale is None and _LAYERS_OF_27B.get(family.name) == layers:
        scale = width**-0.5
    return None if scale is None or math.isclose(scale, head_dim**-0.5, rel_tol=1e-6) else scale


def _soft_cap(fields: Fields, family: Family, key: str) -> float | None:
    """Absent or 0: none; but Gemma 2's first files left theirs out."""
    if key not in fields.values and family.name == "gemma2":
        return float(family.defaults[key])
    return fields.number(key) if fields.get(key) else None


def _scales(fields: Fields, family: Family, config: ModelConfig) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if family.embedding_scale == "sqrt hidden":
        found["embedding_scale"] = math.sqrt(config.hidden)
    for key in ("embedding_scale", "residual_scale", "logit_scale"):
        if not fields.get(key):
            continue
        value = fields.number(key)
        own = getattr(family, key)
        if not own and value != 1:
            raise CheckpointError(
                f"{fields.where}: {family.name}.{key} is {value:g}, which {family.title} does not know"
            )
        if own:
            found[key] = 1 / value if key == "logit_scale" else value  # logits are divided by what a file says
    return found


def _windows(fields: Fields, family: Family, layers: int, context: int) -> tuple[int, ...]:
    default = family.defaults.get("sliding_window") if family.layer_kinds.startswith("every") else None
    window = fields.get("attention.sliding_window")
    if not window and default is None:
        return ()
    window = fields.whole("attention.sliding_window", default, MOST_CONTEXT)
    if window >= context:
        return ()
    if family.layer_kinds == "sliding" and family.name != "llama":
        return (window,) * layers
    if family.layer_kinds.startswith("every"):
        every = _every(fields, family)
        return tuple(window if (i + 1) % every else 0 for i in range(layers))
    raise CheckpointError(
        f"{fields.where}: attention.sliding_window is {window}, below the context of {context}, which this version "
        f"does not know for {family.title}"
    )


def _every(fields: Fields, family: Family) -> int:
    usual = int(family.layer_kinds.split()[1])
    return fields.whole("attention.sliding_window_pattern", usual)


def _rope(fields: Fields, family: Family, head_dim: int, context: int, layers: int) -> Rope:
    dims = fields.whole("rope.dimension_count", head_dim, _MOST_HEADS)
    theta = fields.number("rope.freq_base", 10000.0)
    rope = Rope(dims, theta, scaling=_scaling(fields, dims, theta, context))
    if "rope_local_base_freq" in family.defaults:
        every = _every(fields, family)
        kinds = tuple(LOCAL_ROPE if (i + 1) % every else BASE_ROPE for i in range(layers))
        return replace(rope, local_theta=fields.number("rope.freq_base_swa", _LOCAL_THETA), layers=kinds)
    if interval := family.defaults.get("no_rope_layer_interval"):
        return replace(rope, layers=tuple(BASE_ROPE if (i + 1) % interval else NO_ROPE for i in range(layers)))
    return rope


def _scaling(fields: Fields, dims: int, theta: float, context: int) -> RopeScaling:
    """As llama.cpp has it: linear where no type is given, by 1 where no factor is. Files of 2023 call the factor
    ``rope.scale_linear``."""
    kind = fields.get("rope.scaling.type")
    factor = next((k for k in ("rope.scaling.factor", "rope.scale_linear") if fields.get(k) not in (None, 0)), None)
    attention = fields.number("rope.scaling.attn_factor", 1.0)
    if kind == "longrope" or ("rope.scaling.original_context_length" in fields.values and kind is None):
        original = fields.whole("rope.scaling.original_context_length", context, MOST_CONTEXT)
        return RopeScaling(short_context=original, attention_factor=attention)
    if kind not in (None, "linear", "none", "yarn"):
        raise CheckpointError(
            f"{fields.where}: RoPE scaling {shown(kind)} (rope.scaling.type) is not supported, only 'linear', 'none', "
            f"'yarn', 'longrope' and the tensor {ROPE_FACTORS}"
        )
    if kind == "none" or factor is None or fields.get(factor) == 1:
        return RopeScaling(attention_factor=attention)
    values: dict[str, Any] = {"rope_type": kind or "linear", "factor": fields.number(factor)}
    if kind == "yarn":
        values["original_max_position_embeddings"] = fields.get("rope.scaling.original_context_length") or context
        for ours, theirs in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
            values[ours] = fields.get(f"rope.scaling.{theirs}")
    found = ropes.scaling(Fields(values, f"{fields.where}: RoPE scaling"), dims, theta, context)
    return replace(found, attention_factor=found.attention_factor * attention)
