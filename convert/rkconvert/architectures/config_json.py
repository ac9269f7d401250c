"""A Hugging Face ``config.json`` as features of the transformer. What is not known is refused by name."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rk3588 import shape as shapes
from rk3588.errors import CheckpointError
from rkconvert.toolkit.options import ARCHITECTURES

from . import rope as ropes
from .families import FAMILIES, Family, converted
from .fields import MOST_CONTEXT, Fields, shown
from .model import BASE_ROPE, LOCAL_ROPE, NO_ROPE, ModelConfig, Rope

_MOST_LAYERS, _MOST_HEADS, _MOST_VOCABULARY = 4096, 4096, 1 << 24
_FULL, _SLIDING = "full_attention", "sliding_attention"
_ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh",
}  # fmt: skip
# What changes nothing in the logits: training, caching, generation, bookkeeping.
_IDLE = re.compile(
    r"_.*|auto_map|architectures|model_type|.*_token_id|.*version|.*dtype|.*dropout.*|.*pdrop|initializer.*|use_cache|"
    r"pretraining_tp|torchscript|output_.*|return_dict|problem_type|task_specific_params|id2label|label2id|"
    r"tokenizer_class|attn_implementation|attention_implementation|chunk_size_feed_forward|gradient_checkpointing|"
    r"is_decoder|is_encoder_decoder|finetuning_task|prefix|name_or_path|cache_implementation|unsloth.*|"
    r"tie_encoder_decoder|cross_attention.*|add_cross_attention|num_labels|use_bfloat16|pruned_heads|summary_.*|"
    r"max_length|min_length|do_sample|temperature|top_[kp]|typical_p|repetition_penalty|length_penalty|num_beams.*|"
    r"diversity_penalty|early_stopping|no_repeat_ngram_size|num_return_sequences|suppress_tokens|"
    r"begin_suppress_tokens|bad_words_ids|remove_invalid_values|exponential_decay_length_penalty|"
    r"encoder_no_repeat_ngram_size|tf_legacy_loss|sep_token|use_flash.*|attn_logit_bias|transformers\.js_config|"
    r"model_parallel|training.*|quantization_config|vocab_size_multiple|use_mup|mup_denominator|use_qk_norm_init"
)
_USED = {
    "hidden_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers", "intermediate_size", "head_dim",
    "vocab_size", "max_position_embeddings", "rms_norm_eps", "hidden_act", "tie_word_embeddings", "rope_theta",
    "rope_scaling", "rope_parameters", "partial_rotary_factor", "original_max_position_embeddings", "sliding_window",
    "use_sliding_window", "max_window_layers", "layer_types", "rope_local_base_freq", "sliding_window_pattern",
    "no_rope_layers", "no_rope_layer_interval", "query_pre_attn_scalar", "attn_logit_softcapping",
    "final_logit_softcapping", "attention_bias", "mlp_bias", "hidden_activation",
}  # fmt: skip
# Keys that change nothing with these values.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "qk_layernorm": (False,), "use_bidirectional_attention": (False,), "sparse_config": (), "kv_channels": (),
    "num_experts": (0,), "num_local_experts": (0,),
}  # fmt: skip


def family_of(settings: Mapping[str, Any], where: str) -> Family:
    """The family of a config.json; CheckpointError where it is none that is converted."""
    classes = settings.get("architectures")
    name = classes[0] if isinstance(classes, list) and classes else None
    kind = settings.get("model_type")
    for family in FAMILIES:
        if name in family.classes or (name is None and kind in family.model_types):
            if kind is not None and kind not in family.model_types:
                break
            if family.refused:
                raise CheckpointError(
                    f"{where}: {family.title} is not converted for the simulated runtime: {family.refused}"
                )
            return family
    raise other_family(where, name or kind, ARCHITECTURES, kind)


def other_family(where: str, name: Any, known: Sequence[str], model_type: Any) -> CheckpointError:
    """What the simulated runtime lacks, rkllm-toolkit may take: then the way to a board is told."""
    what = "is not an architecture this version converts for the simulated runtime"
    told = f"{where}: {shown(name)} {what}: it takes {converted()}"
    ways = ["--target rk3588 alone, without --lora, converts it for a board"] if name in known else []
    if isinstance(model_type, str) and model_type in shapes.FAMILIES:
        ways.append("rk3588 predict says how fast it would be there")
    return CheckpointError(
        f"{told}; {', and '.join(ways)}" if ways else f"{told}, and rkllm-toolkit 1.1.1 does not know it either"
    )


def read_config(settings: Mapping[str, Any], where: str) -> ModelConfig:
    """From the contents of ``config.json``; CheckpointError names what this version cannot convert."""
    family = family_of(settings, where)
    usual = {theirs: ours for ours, theirs in family.keys.items()}
    given = {usual.get(key, key): value for key, value in settings.items()}
    if "hidden_activation" in family.keys.values():  # Gemma's hidden_act was a mistake that hidden_activation mends
        given["hidden_act"] = settings.get("hidden_activation") or family.defaults["hidden_act"]
    fields = Fields({**family.defaults, **given}, where)
    refuse_quantised(fields)
    _refuse_unknown(fields, family)
    hidden, heads = fields.whole("hidden_size"), fields.whole("num_attention_heads", most=_MOST_HEADS)
    layers = fields.whole("num_hidden_layers", most=_MOST_LAYERS)
    head_dim = fields.whole("head_dim", hidden // heads or 1, _MOST_HEADS)
    context = fields.whole("max_position_embeddings", most=MOST_CONTEXT)
    kinds = _layer_kinds(fields, family, layers)
    config = ModelConfig(
        family=family.name,
        layers=layers,
        hidden=hidden,
        intermediate=fields.whole("intermediate_size"),
        heads=heads,
        kv_heads=fields.whole("num_key_value_heads", heads, _MOST_HEADS),
        head_dim=head_dim,
        vocab_size=fields.whole("vocab_size", most=_MOST_VOCABULARY),
        context_length=context,
        norm_eps=fields.number("rms_norm_eps"),
        tied=fields.flag("tie_word_embeddings"),
        rope=_rope(fields, family, head_dim, context, kinds),
        layer_norm=family.layer_norm,
        head_norms=family.head_norms,
        post_norms=family.post_norms,
        parallel=family.parallel,
        gated=family.gated,
        activation=_activation(fields, family),
        biases=_biases(fields, family),
        attention_soft_cap=fields.number_or_none("attn_logit_softcapping"),
        logit_soft_cap=fields.number_or_none("final_logit_softcapping"),
        windows=_windows(fields, kinds, context),
        adapters_interleaved=family.gguf_interleaved,
    )
    return checked(replace(config, **_scales(fields, family, config)), where)


def refuse_quantised(fields: Fields) -> None:
    """A checkpoint of 4- or 8-bit weights has lost what a conversion needs."""
    if quantised := fields.get("quantization_config"):
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise CheckpointError(
            f"{fields.where}: the model is quantised already ({method}): convert the original instead"
        )


def checked(config: ModelConfig, where: str) -> ModelConfig:
    """The config itself, when its sizes fit together."""
    if config.heads % config.kv_heads or config.head_dim % 2:
        raise CheckpointError(
            f"{where}: {config.heads} heads cannot share {config.kv_heads} KV heads of size {config.head_dim}"
        )
    if config.rope.dims % 2 or not 2 <= config.rope.dims <= config.head_dim:
        raise CheckpointError(f"{where}: RoPE cannot turn {config.rope.dims} of a head of {config.head_dim}")
    return config


def _refuse_unknown(fields: Fields, family: Family) -> None:
    """A setting that is not known may change what the model computes."""
    own = {family.residual_scale, family.logit_scale, family.embedding_scale, *family.bias_keys}
    for key, value in sorted(fields.values.items()):
        if key in _USED or key in own or _IDLE.fullmatch(key) or value is None:
            continue
        if key in _NEUTRAL and (value in _NEUTRAL[key] or not _NEUTRAL[key]):
            continue
        raise CheckpointError(
            f"{fields.where}: {key} is {shown(value)}, which this version does not know for {family.title} and which "
            "may change what the model computes: take it out of a copy of the file if it does not"
        )


def _activation(fields: Fields, family: Family) -> str:
    name = fields.text("hidden_act", "silu")
    if family.name.startswith("gemma") and name == "gelu":  # what Gemma's first files said, meaning the other
        return "gelu_tanh"
    if name not in _ACTIVATIONS:
        raise CheckpointError(f"{fields.where}: hidden_act is {name!r}, only {', '.join(_ACTIVATIONS)} are supported")
    return _ACTIVATIONS[name]


def _biases(fields: Fields, family: Family) -> frozenset[str]:
    found = set(family.biases)
    for key, kinds in family.bias_keys.items():
        if fields.flag(key):
            found |= set(kinds)
    for key in ("attention_bias", "mlp_bias"):
        if key not in family.bias_keys and fields.flag(key):
            raise CheckpointError(f"{fields.where}: {key} is set, which {family.title} does not know")
    return frozenset(found)


def _scales(fields: Fields, family: Family, config: ModelConfig) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if family.embedding_scale == "sqrt hidden":
        found["embedding_scale"] = math.sqrt(config.hidden)
    elif family.embedding_scale:
        found["embedding_scale"] = fields.number(family.embedding_scale)
    if family.residual_scale:
        found["residual_scale"] = fields.number(family.residual_scale) / math.sqrt(config.layers)
    if family.logit_scale:
        found["logit_scale"] = fields.number(family.logit_scale) / config.hidden
    if fields.get("query_pre_attn_scalar") is not None:
        scale = fields.number("query_pre_attn_scalar") ** -0.5
        found["attention_scale"] = None if scale == config.head_dim**-0.5 else scale
    return found


def _layer_kinds(fields: Fields, family: Family, layers: int) -> list[str]:
    """Of each layer, whether it sees all positions or a window of them."""
    given = fields.get("layer_types")
    if given is not None:
        known = isinstance(given, list) and len(given) == layers and set(map(str, given)) <= {_FULL, _SLIDING}
        if not known:
            raise CheckpointError(
                f"{fields.where}: layer_types is {shown(given)}, expected {layers} of {_FULL} and {_SLIDING}"
            )
        return list(given)
    rule = family.layer_kinds
    if rule == "from max_window_layers":
        first = fields.values.get("max_window_layers")
        if not isinstance(first, int) or isinstance(first, bool) or first < 0:
            raise CheckpointError(f"{fields.where}: 'max_window_layers' is {shown(first)}, expected a whole number")
        return [_SLIDING if fields.flag("use_sliding_window") and i >= first else _FULL for i in range(layers)]
    if rule.startswith("every"):
        every = fields.whole("sliding_window_pattern", int(rule.split()[1]))
        return [_SLIDING if (i + 1) % every else _FULL for i in range(layers)]
    return [_SLIDING if rule == "sliding" else _FULL] * layers


def _windows(fields: Fields, kinds: list[str], context: int) -> tuple[int, ...]:
    if _SLIDING not in kinds or fields.get("sliding_window") is None or fields.get("use_sliding_window") is False:
        return ()
    window = fields.whole("sliding_window", most=MOST_CONTEXT)
    return tuple(window if kind == _SLIDING else 0 for kind in kinds) if window < context else ()


def _rope(fields: Fields, family: Family, head_dim: int, context: int, kinds: list[str]) -> Rope:
    """transformers 5 keeps all of it in ``rope_parameters``, earlier ones in ``rope_theta`` and ``rope_scaling``."""
    parameters, local = fields.mapping("rope_parameters"), None
    if _FULL in parameters.values:  # by kind of layer
        local = parameters.mapping(_SLIDING)
        parameters = parameters.mapping(_FULL)
    theta = parameters.number("rope_theta", fields.number("rope_theta"))
    factor = parameters.number("partial_rotary_factor", fields.number("partial_rotary_factor", 1.0))
    dims = int(head_dim * factor)
    scaling = fields.mapping("rope_scaling")
    if not scaling.values:
        scaling = parameters
    scaling = Fields(_scaling_values(scaling, fields, family), scaling.where)
    rope = Rope(dims, theta, scaling=ropes.scaling(scaling, dims, theta, context))
    if fields.get("rope_local_base_freq") is not None or local is not None:
        base = fields.number("rope_local_base_freq", 10000.0)
        if local is not None:
            if local.get("rope_type") not in (None, "default"):
                raise CheckpointError(f"{fields.where}: RoPE of layers with a window is scaled, which is not supported")
            base = local.number("rope_theta", base)
        return replace(
            rope, local_theta=base, layers=tuple(LOCAL_ROPE if kind == _SLIDING else BASE_ROPE for kind in kinds)
        )
    return replace(rope, layers=_rope_layers(fields, family, len(kinds)))


def _scaling_values(scaling: Fields, fields: Fields, family: Family) -> dict[str, Any]:
    values = dict(scaling.values)
    # Phi-3's first files call LongRoPE "su" or "yarn", and its original context stands beside it.
    if family.name == "phi3" and values.get("type", values.get("rope_type")) == "yarn":
        values["rope_type"] = "longrope"
    if fields.get("original_max_position_embeddings") is not None:
        values.setdefault("original_max_position_embeddings", fields.get("original_max_position_embeddings"))
    return values


def _rope_layers(fields: Fields, family: Family, layers: int) -> tuple[int, ...]:
    """SmolLM3 leaves RoPE out of some layers: 1 in ``no_rope_layers`` means that there is RoPE."""
    if "no_rope_layer_interval" not in family.defaults:
        return ()
    given = fields.get("no_rope_layers")
    if given is None:
        every = fields.whole("no_rope_layer_interval")
        return tuple(BASE_ROPE if (i + 1) % every else NO_ROPE for i in range(layers))
    if not isinstance(given, list) or len(given) < layers or set(given) - {0, 1}:
        raise CheckpointError(f"{fields.where}: no_rope_layers is {shown(given)}, expected {layers} of 0 and 1")
    return tuple(BASE_ROPE if turns else NO_ROPE for turns in given[:layers])
