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
from .fields import MOST_CONTEXT, MOST_HEADS, MOST_LAYERS, Fields, shown
from .model import (
    BASE_ROPE,
    LOCAL_ROPE,
    NO_ROPE,
    ROPE_FACTORS,
    ROPE_LONG_FACTORS,
    ROPE_SHORT_FACTORS,
    ModelConfig,
    Rope,
    RopeScaling,
)

_LOCAL_THETA = 10000.0  # of Gemma 3's layers with a window, where a file does not say
_LAYERS_OF_27B = {"gemma2": 46, "gemma3": 62}  # whose queries llama.cpp scales by hidden / heads
# What is computed with, in every family and in some: llama.cpp passes over what a family does not have.
_USED = {
    "block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "rope.dimension_count",
    "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon", "rope.freq_base", "rope.scaling.type",
    "rope.scaling.factor", "rope.scale_linear", "rope.scaling.original_context_length", "rope.scaling.attn_factor",
    "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow", "rope.scaling.yarn_attn_factor",
}  # fmt: skip
_OWN: Mapping[str, frozenset[str]] = {
    "phi3": frozenset({"attention.sliding_window"}),
    "gemma2": frozenset({
        "attention.sliding_window", "attention.sliding_window_pattern", "attn_logit_softcapping",
        "final_logit_softcapping",
    }),
    "gemma3": frozenset({
        "attention.sliding_window", "attention.sliding_window_pattern", "final_logit_softcapping",
        "rope.freq_base_swa",
    }),
    "minicpm": frozenset({"embedding_scale", "residual_scale", "logit_scale"}),
}  # fmt: skip
_PART_OF_A_HEAD = ("phi2", "phi3")  # whose heads may turn in part
# What changes nothing.
_IDLE = {
    "tensor_data_layout",  # llama.cpp's order of Q and K, whatever it says
    "rope.scaling.finetuned", "rope.scaling.yarn_log_multiplier", "expert_used_count", "pooling_type",
    "attention.key_length_swa", "attention.value_length_swa", "rope.dimension_count_swa",  # equal to the others here
}  # fmt: skip
# Settings that change nothing with these values, beside 0, "" and false.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "rope.scaling.yarn_ext_factor": (-1,),
    "rope.scaling.alpha": (1,),
    "embedding_scale": (1,),
    "residual_scale": (1,),
    "logit_scale": (1,),
}
KEYS = frozenset(_USED | _IDLE | _NEUTRAL.keys()).union(*_OWN.values())  # every one that is known to some family


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
    hidden, heads = fields.whole("embedding_length"), fields.whole("attention.head_count", most=MOST_HEADS)
    layers = fields.whole("block_count", most=MOST_LAYERS)
    head_dim = fields.whole("attention.key_length", hidden // heads or 1, MOST_HEADS)
    if fields.whole("attention.value_length", head_dim) != head_dim:
        raise CheckpointError(
            f"{where}: attention.value_length is {fields.get('attention.value_length')}, only the head's size "
            f"({head_dim}) is supported"
        )
    context = fields.whole("context_length", most=MOST_CONTEXT)
    _refuse_unknown(fields, family, context, head_dim)
    norm = "attention.layer_norm_epsilon" if family.layer_norm else "attention.layer_norm_rms_epsilon"
    config = ModelConfig(
        family=family.name,
        layers=layers,
        hidden=hidden,
        intermediate=fields.whole("feed_forward_length"),
        heads=heads,
        kv_heads=fields.whole("attention.head_count_kv", heads, MOST_HEADS),
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
        attention_scale=_attention_scale(family, layers, hidden // heads, head_dim),
        attention_soft_cap=_soft_cap(fields, family, "attn_logit_softcapping"),
        logit_soft_cap=_soft_cap(fields, family, "final_logit_softcapping"),
        windows=_windows(fields, family, layers, context),
        adapters_interleaved=family.gguf_interleaved,
    )
    return checked(replace(config, **_scales(fields, family, config)), where)


def with_biases(config: ModelConfig, names: Mapping[str, Any]) -> ModelConfig:
    """``config`` with the biases that the file has tensors of: GGUF has no setting for them."""
    kinds = {n.split(".")[-2] for n in names if n.endswith(".bias") and not n.split(".")[-2].endswith("norm")}
    return replace(config, biases=config.biases | kinds)


def with_rope_factors(
    config: ModelConfig, tensors: Mapping[str, tuple[float, ...]], metadata: Mapping[str, Any], where: str
) -> ModelConfig:
    """``config`` with the RoPE factors that stand in tensors of a file, by their names."""
    scaling = config.rope.scaling
    longrope = metadata.get(f"{config.family}.rope.scaling.type") == "longrope"
    if (ROPE_SHORT_FACTORS in tensors) != (ROPE_LONG_FACTORS in tensors) or (
        longrope and ROPE_SHORT_FACTORS not in tensors
    ):
        missing = ROPE_LONG_FACTORS if ROPE_SHORT_FACTORS in tensors else ROPE_SHORT_FACTORS
        raise CheckpointError(f"{where} lacks the tensor {missing}, which its RoPE needs: it is not whole")

    def times(name: str) -> tuple[float, ...]:
        linear = scaling.factors or (1.0,) * len(tensors[name])
        return tuple(f * s for f, s in zip(tensors[name], linear, strict=True))

    if ROPE_FACTORS in tensors:
        scaling = replace(scaling, factors=times(ROPE_FACTORS), short_context=0)
    elif ROPE_SHORT_FACTORS in tensors:
        scaling = replace(scaling, factors=times(ROPE_SHORT_FACTORS), long_factors=times(ROPE_LONG_FACTORS))
    else:
        scaling = replace(scaling, short_context=0)
    return replace(config, rope=replace(config.rope, scaling=scaling))


def _refuse_unknown(fields: Fields, family: Family, context: int, head_dim: int) -> None:
    neutral = dict(_NEUTRAL)
    if isinstance(window := fields.get("attention.sliding_window"), int) and window >= context:
        neutral["attention.sliding_window"] = (window,)
    if isinstance(scale := fields.get("attention.scale"), float) and math.isclose(scale, head_dim**-0.5, rel_tol=1e-6):
        neutral["attention.scale"] = (scale,)
    if fields.get("rope.scaling.type") == "yarn":
        neutral["rope.scaling.yarn_ext_factor"] = (-1, 1)
    for key, value in sorted(fields.values.items()):
        known = key in _USED or key in _IDLE or key in _OWN.get(family.name, ()) or value in neutral.get(key, ())
        if not known and (value or key == "attention.causal"):
            raise _unknown(fields, family, key)
    if family.name not in _PART_OF_A_HEAD and fields.get("rope.dimension_count") not in (None, head_dim):
        raise CheckpointError(
            f"{fields.where}: rope.dimension_count is {shown(fields.get('rope.dimension_count'))}, only the head's "
            f"size ({head_dim}) is supported for {family.title}"
        )


def _unknown(fields: Fields, family: Family, key: str) -> CheckpointError:
    return CheckpointError(
        f"{fields.where}: {family.name}.{key} is {shown(fields.get(key))}, which this version does not know for "
        f"{family.title} and which may change what the model computes"
    )


def _attention_scale(family: Family, layers: int, width: int, head_dim: int) -> float | None:
    """GGUF files of Gemma's 27B do not say that their queries are scaled otherwise: llama.cpp knows by the layers."""
    different = _LAYERS_OF_27B.get(family.name) == layers and width != head_dim
    return width**-0.5 if different else None


def _soft_cap(fields: Fields, family: Family, key: str) -> float | None:
    """Absent or 0: none; but Gemma 2's first files left theirs out."""
    if key not in fields.values and family.name == "gemma2":
        return float(family.defaults[key])
    return fields.number(key) if fields.get(key) else None


def _scales(fields: Fields, family: Family, config: ModelConfig) -> dict[str, Any]:
    if family.embedding_scale == "sqrt hidden":
        return {"embedding_scale": math.sqrt(config.hidden)}
    if family.name != "minicpm":
        return {}
    # Its first files leave out what MiniCPM 1B and 2B have. (llama.cpp means the same, but has the logits' the wrong
    # way round.) Logits are divided by what a file says.
    return {
        "embedding_scale": fields.number("embedding_scale", 12.0),
        "residual_scale": fields.number("residual_scale", 1.4 / math.sqrt(config.layers)),
        "logit_scale": 1 / fields.number("logit_scale", config.hidden / 256),
    }


def _windows(fields: Fields, family: Family, layers: int, context: int) -> tuple[int, ...]:
    """Phi-3's count for every layer, as its authors have it; llama.cpp computes without."""
    if "attention.sliding_window" not in _OWN.get(family.name, ()) or not _has_windows(fields, family):
        return ()
    window = fields.whole("attention.sliding_window", family.defaults.get("sliding_window"), MOST_CONTEXT)
    if window >= context:
        return ()
    if family.layer_kinds == "sliding":
        return (window,) * layers
    every = _every(fields, family)
    return tuple(window if (i + 1) % every else 0 for i in range(layers))


def _has_windows(fields: Fields, family: Family) -> bool:
    """Gemma 2 has windows where its files do not say so; of the others a file without, or with 0, has none."""
    return family.name == "gemma2" or bool(fields.get("attention.sliding_window"))


def _every(fields: Fields, family: Family) -> int:
    usual = int(family.layer_kinds.split()[1])
    return fields.whole("attention.sliding_window_pattern", usual)


def _rope(fields: Fields, family: Family, head_dim: int, context: int, layers: int) -> Rope:
    dims = fields.whole("rope.dimension_count", head_dim, MOST_HEADS)
    theta = fields.number("rope.freq_base", 10000.0)
    rope = Rope(dims, theta, scaling=_scaling(fields, family, dims, theta, context))
    if "rope_local_base_freq" in family.defaults:
        if not _has_windows(fields, family):
            return rope
        every = _every(fields, family)
        kinds = tuple(LOCAL_ROPE if (i + 1) % every else BASE_ROPE for i in range(layers))
        return replace(rope, local_theta=fields.number("rope.freq_base_swa", _LOCAL_THETA), layers=kinds)
    if interval := family.defaults.get("no_rope_layer_interval"):
        return replace(rope, layers=tuple(BASE_ROPE if (i + 1) % interval else NO_ROPE for i in range(layers)))
    return rope


def _scaling(fields: Fields, family: Family, dims: int, theta: float, context: int) -> RopeScaling:
    """As llama.cpp has it: linear where no type is given, by 1 where no factor is. Files of 2023 call the factor
    ``rope.scale_linear``."""
    kind = fields.get("rope.scaling.type")
    factor = next((k for k in ("rope.scaling.factor", "rope.scale_linear") if fields.get(k) not in (None, 0)), None)
    kinds = ("linear", "none", "longrope") if family.name == "gemma3" else ("linear", "none", "longrope", "yarn")
    if kind not in (None, *kinds):
        raise CheckpointError(
            f"{fields.where}: RoPE scaling {shown(kind)} (rope.scaling.type) is not supported for {family.title}, only "
            f"{', '.join(map(repr, kinds))} and the tensor {ROPE_FACTORS}"
        )
    if kind != "yarn" and fields.get("rope.scaling.yarn_attn_factor") not in (None, 0, 1):
        raise _unknown(fields, family, "rope.scaling.yarn_attn_factor")
    original = fields.whole("rope.scaling.original_context_length", context, MOST_CONTEXT)
    attention = fields.number("rope.scaling.attn_factor", 1.0)
    found = RopeScaling()
    if kind != "none" and factor is not None and fields.get(factor) != 1:
        values: dict[str, Any] = {"rope_type": "linear", "factor": fields.number(factor)}
        if kind == "yarn":
            values |= {"rope_type": "yarn", "original_max_position_embeddings": original}
            values |= {beta: fields.get(f"rope.scaling.yarn_{beta}") for beta in ("beta_fast", "beta_slow")}
        found = ropes.scaling(Fields(values, f"{fields.where}: RoPE scaling"), dims, theta, context)
        said = fields.number("rope.scaling.yarn_attn_factor", found.attention_factor)
        if kind == "yarn" and not math.isclose(said, found.attention_factor, rel_tol=1e-6):
            # llama.cpp's converter writes it, llama.cpp computes without it.
            raise _unknown(fields, family, "rope.scaling.yarn_attn_factor")
    return replace(found, short_context=original, attention_factor=found.attention_factor * attention)
