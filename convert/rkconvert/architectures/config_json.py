"""A Hugging Face ``config.json`` as features of the transformer. What is not known is refused by name."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rk3588 import families
from rk3588.errors import CheckpointError
from rk3588.families import Family

from . import rope as ropes
from .fields import MOST_CONTEXT, MOST_HEADS, MOST_LAYERS, Fields, shown
from .model import BASE_ROPE, LOCAL_ROPE, NO_ROPE, ModelConfig, Rope

_MOST_VOCABULARY = 1 << 24
_FULL, _SLIDING = "full_attention", "sliding_attention"
_ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh",
}  # fmt: skip
# What changes nothing in the logits: training, caching, generation, bookkeeping.
_IDLE = re.compile(
    r"_.*|auto_map|architectures|model_type|.*_token_id|.*version|.*dtype|.*dropout.*|.*pdrop|initializer.*|use_cache|"
    r"pretraining_tp|torchscript|output_.*|return_dict|problem_type|task_specific_params|id2label|label2id|"
    r"tokenizer_class|attn_implementation|attention_implementation|chunk_size_feed_forward|gradient_checkpointing|is_llama_config|"
    r"is_decoder|finetuning_task|prefix|name_or_path|cache_implementation|unsloth.*|tie_encoder_decoder|num_labels|"
    r"use_bfloat16|summary_.*|max_length|min_length|do_sample|temperature|top_[kp]|typical_p|repetition_penalty|"
    r"length_penalty|num_beam.*|diversity_penalty|early_stopping|num_return_sequences|suppress_tokens|"
    r"begin_suppress_tokens|bad_words_ids|remove_invalid_values|exponential_decay_length_penalty|.*ngram_size|"
    r"tf_legacy_loss|sep_token|use_flash.*|transformers\.js_config|model_parallel|training.*|quantization_config|rkconvert_rotation"
)
COMMON = {
    "hidden_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers", "intermediate_size", "head_dim",
    "vocab_size", "rope_scaling", "rope_parameters", "original_max_position_embeddings",
}  # fmt: skip
# Keys that change nothing with these values, in a family that does not know them.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "qk_layernorm": (False,), "use_bidirectional_attention": (False,), "num_experts": (0,), "num_local_experts": (0,),
    "attention_bias": (False,), "mlp_bias": (False,), "partial_rotary_factor": (1.0,), "is_encoder_decoder": (False,),
    "add_cross_attention": (False,), "pruned_heads": ({},), "use_sliding_window": (False,), "use_mrope": (False,),
    "rope_interleaved": (False,), "lm_head_bias": (False,), "full_attn_mod": (1,), "interpolate_factor": (1,),
}  # fmt: skip
# Settings of one family that change nothing here: MiniCPM4's draft models and its sparse attention, which is computed
# as the dense one that it stands for; Qwen's and SmolLM3's where their windows are off.
_IDLE_OF = {
    "minicpm": {"mup_denominator", "use_mup", "sparse_config"},
    "smollm3": {"max_window_layers"},
    "gemma": {"hidden_activation"},  # read below
}
_ALIASES = {"_sliding_window_pattern": "sliding_window_pattern"}  # as transformers 5 saves it


def family_of(settings: Mapping[str, Any], where: str) -> Family:
    """The family of a config.json; CheckpointError where it is none that is converted."""
    name = class_of(settings, where)
    kind = settings.get("model_type")
    family = families.of_class(name) if name is not None else families.of_model_type(kind)
    if name is None and kind is None:
        raise CheckpointError(f"{where} names no architecture: it is not the config.json of a model")
    if family is None:
        raise other_family(where, name or kind)
    if kind is not None and kind not in family.model_types:
        raise CheckpointError(
            f"{where}: 'architectures' is {shown(name)} and 'model_type' {shown(kind)}, which are not of one family: "
            "get the model's own config.json"
        )
    return convertible(family, where)


def class_of(settings: Mapping[str, Any], where: str) -> str | None:
    """The first of ``architectures``; None where none is named, CheckpointError where it is no list of names."""
    classes = settings.get("architectures")
    if classes in (None, []):
        return None
    if not isinstance(classes, list) or not isinstance(classes[0], str):
        raise CheckpointError(f"{where}: 'architectures' is {shown(classes)}; it has to be a list of names")
    return str(classes[0])


def convertible(family: Family, where: str) -> Family:
    """The family itself, when the simulated runtime computes it."""
    if family.refused:
        raise CheckpointError(
            f"{where}: {family.title} is not converted for the simulated runtime: {family.refused}" + _ways(family)
        )
    return family


def other_family(where: str, name: Any) -> CheckpointError:
    return CheckpointError(
        f"{where}: {shown(name)} is not an architecture this version converts for the simulated runtime: it takes "
        f"{families.converted()}; nor is it known that rkllm-toolkit takes it"
    )


def _ways(family: Family) -> str:
    """What the simulated runtime lacks, rkllm-toolkit may take: then the way to a board is told."""
    ways = []
    if family.toolkit:
        ways.append(f"--target rk3588 alone, without --lora, converts it for a board (rkllm-toolkit {family.toolkit})")
    if not family.unpredicted:
        ways.append("rk3588 predict says how fast it would be there")
    return f"; {', and '.join(ways)}" if ways else ""


def text_part(settings: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """Of a model with images its language model's settings, and what is left out, as a remark."""
    classes = settings.get("architectures")
    name = classes[0] if isinstance(classes, list) and classes else None
    family = families.of_class(name)
    if family is None or name not in family.text_of:
        return settings, ()
    text = Fields(settings, where).mapping("text_config").values
    if not text:
        raise CheckpointError(f"{where}: {name} has no text_config, which would say what its language model is")
    beside = {key: settings[key] for key in ("tie_word_embeddings", "quantization_config") if key in settings}
    left = f"of {name} its language model is converted ({family.title}): the part that reads images is left out"
    return {**beside, **text, "architectures": [family.classes[0]]}, (left,)


def has_long_rope(settings: Mapping[str, Any]) -> bool:
    """Whether a config.json of any family asks for LongRoPE. Phi-3's first files call it "su" or "yarn": by whichever
    name, nothing else has factors for long contexts."""
    found = [settings.get(key) for key in ("rope_scaling", "rope_parameters")]
    found += [one for scaling in found if isinstance(scaling, dict) for one in scaling.values()]  # by kind of layer
    scalings = [scaling for scaling in found if isinstance(scaling, dict)]
    return any(
        scaling.get("long_factor") or scaling.get(key) in ("longrope", "su")
        for scaling in scalings
        for key in ("type", "rope_type")
    )


def read_config(settings: Mapping[str, Any], where: str) -> ModelConfig:
    """From the contents of ``config.json``; CheckpointError names what this version cannot convert."""
    family = family_of(settings, where)
    fields = _fields(settings, family, where)
    hidden, heads = fields.whole("hidden_size"), fields.whole("num_attention_heads", most=MOST_HEADS)
    layers = fields.whole("num_hidden_layers", most=MOST_LAYERS)
    head_dim = fields.whole("head_dim", hidden // heads or 1, MOST_HEADS)
    context = _context(fields)
    rope_layers = _rope_layers(fields, family, layers)
    kinds = _layer_kinds(fields, family, layers, rope_layers)
    config = ModelConfig(
        family=family.name,
        layers=layers,
        hidden=hidden,
        intermediate=fields.whole("intermediate_size"),
        heads=heads,
        kv_heads=fields.whole("num_key_value_heads", heads, MOST_HEADS),
        head_dim=head_dim,
        vocab_size=fields.whole("vocab_size", most=_MOST_VOCABULARY),
        context_length=context,
        norm_eps=fields.number("rms_norm_eps"),
        tied=fields.flag("tie_word_embeddings"),
        rope=_rope(fields, family, head_dim, kinds, rope_layers),
        layer_norm=family.layer_norm,
        head_norms=family.head_norms,
        post_norms=family.post_norms,
        parallel=family.parallel,
        gated=family.gated,
        activation=_activation(fields, family),
        biases=_biases(fields, family),
        attention_soft_cap=fields.number_or_none("attn_logit_softcapping"),
        logit_soft_cap=fields.number_or_none("final_logit_softcapping"),
        windows=_windows(fields, family, kinds, context),
        adapters_interleaved=family.gguf_interleaved,
    )
    return checked(replace(config, **_scales(fields, family, config)), where)


def _fields(settings: Mapping[str, Any], family: Family, where: str) -> Fields:
    """The settings by their usual names, with the family's defaults; CheckpointError for what is not known."""
    refuse_quantised(Fields(settings, where))
    settings = {_ALIASES.get(key, key) if _ALIASES.get(key) in family.defaults else key: value
                for key, value in settings.items()}  # fmt: skip
    _refuse_unknown(settings, family, where)
    usual = {theirs: ours for ours, theirs in family.keys.items()}
    given = {usual.get(key, key): value for key, value in settings.items() if key not in family.keys}
    if family.name == "gemma" and settings.get("hidden_activation"):
        given["hidden_act"] = settings["hidden_activation"]  # it mends hidden_act
    return Fields({**family.sizes, **family.defaults, **given}, where)


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
    if config.tied and "output" in config.biases:
        raise CheckpointError(f"{where}: lm_head is the embedding and has a bias as well, which is not supported")
    if config.rope.dims % 2 or not 2 <= config.rope.dims <= config.head_dim:
        raise CheckpointError(f"{where}: RoPE cannot turn {config.rope.dims} of a head of {config.head_dim}")
    return config


def _refuse_unknown(settings: Mapping[str, Any], family: Family, where: str) -> None:
    """A setting that is not known may change what the model computes."""
    scales = {family.residual_scale, family.logit_scale, family.embedding_scale}
    known = {*COMMON, *family.defaults, *family.known, *family.bias_keys, *scales}
    # A usual key that the family calls otherwise says nothing there; of those, only hidden_act is often seen.
    known = {family.keys.get(key, key) for key in known} | ({"hidden_act"} & set(family.keys))
    known |= _IDLE_OF.get(family.name, set())
    for key, value in sorted(settings.items()):
        if key in known or _IDLE.fullmatch(key) or value is None:
            continue
        if any(value == neutral for neutral in _NEUTRAL.get(key, ())):
            continue
        if key == "sliding_window_size" and value == settings.get("sliding_window"):  # the same, in Gemma 2's files
            continue
        raise CheckpointError(
            f"{where}: {key} is {shown(value)}, which this version does not know for {family.title} and which may "
            "change what the model computes: take it out of a copy of the file if it does not"
        )


def _context(fields: Fields) -> int:
    """Dynamic NTK scales nothing up to the original context; beyond it, it is not offered."""
    context = fields.whole("max_position_embeddings", most=MOST_CONTEXT)
    for key in ("rope_scaling", "rope_parameters"):
        scaling = fields.mapping(key)
        if "dynamic" in (scaling.get("rope_type"), scaling.get("type")):
            original = fields.whole("original_max_position_embeddings", context, MOST_CONTEXT)
            return min(context, scaling.whole("original_max_position_embeddings", original, MOST_CONTEXT))
    return context


def _activation(fields: Fields, family: Family) -> str:
    name = fields.text("hidden_act", "silu")
    # What Gemma's first files said, meaning the other.
    if family.name == "gemma" and name == "gelu" and not fields.get("hidden_activation"):
        return "gelu_tanh"
    if name not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise CheckpointError(f"{fields.where}: hidden_act is {shown(name)}, only {known} are supported")
    return _ACTIVATIONS[name]


def _biases(fields: Fields, family: Family) -> frozenset[str]:
    found = set(family.biases)
    for key, kinds in family.bias_keys.items():
        if fields.flag(key):
            found |= set(kinds)
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


def _layer_kinds(fields: Fields, family: Family, layers: int, rope_layers: tuple[int, ...]) -> list[str]:
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
    if rule == "where no RoPE is":
        return [_SLIDING if fields.flag("use_sliding_window") and kind == NO_ROPE else _FULL for kind in rope_layers]
    if rule.startswith("every"):
        every = fields.whole("sliding_window_pattern", int(rule.split()[1]))
        return [_SLIDING if (i + 1) % every else _FULL for i in range(layers)]
    return [_SLIDING if rule == "sliding" else _FULL] * layers


def _windows(fields: Fields, family: Family, kinds: list[str], context: int) -> tuple[int, ...]:
    """Only some families have the switch ``use_sliding_window``: in others it says nothing."""
    off = "use_sliding_window" in family.defaults and not fields.flag("use_sliding_window")
    if _SLIDING not in kinds:
        return ()
    if off or fields.get("sliding_window") is None:
        if fields.get("layer_types") is None and not family.layer_kinds.startswith("every"):
            return ()
        why = "use_sliding_window is false" if off else "there is no sliding_window"
        raise CheckpointError(f"{fields.where}: {why}, and some layers are {_SLIDING}: get the model's own config.json")
    window = fields.whole("sliding_window", most=MOST_CONTEXT)
    return tuple(window if kind == _SLIDING else 0 for kind in kinds) if window < context else ()


def _rope(fields: Fields, family: Family, head_dim: int, kinds: list[str], rope_layers: tuple[int, ...]) -> Rope:
    """transformers 5 keeps all of it in ``rope_parameters``, earlier ones in ``rope_theta`` and ``rope_scaling``."""
    parameters, local = fields.mapping("rope_parameters"), None
    by_kind = "rope_local_base_freq" in family.defaults
    if by_kind and set(parameters.values) & {_FULL, _SLIDING}:
        local = parameters.mapping(_SLIDING)
        ropes.only(parameters, {_FULL, _SLIDING})
        parameters = parameters.mapping(_FULL)
    scaling = fields.mapping("rope_scaling")
    if not scaling.values:
        scaling = parameters
    theta = scaling.number("rope_theta", parameters.number("rope_theta", fields.number("rope_theta")))
    factor = fields.number("partial_rotary_factor", 1.0)
    factor = scaling.number("partial_rotary_factor", parameters.number("partial_rotary_factor", factor))
    if factor != 1 and "partial_rotary_factor" not in family.defaults:
        raise CheckpointError(
            f"{scaling.where}: partial_rotary_factor is {factor:g}, which this version does not know for {family.title}"
        )
    dims = int(head_dim * factor)
    scaling = Fields(_scaling_values(scaling, fields, family), scaling.where)
    context = fields.whole("max_position_embeddings", most=MOST_CONTEXT)
    rope = Rope(dims, theta, layers=rope_layers, scaling=ropes.scaling(scaling, dims, theta, context))
    if not by_kind:
        return rope
    base = fields.number("rope_local_base_freq", 10000.0)
    if local is not None:
        ropes.only(local, {"rope_type", "rope_theta"})
        if local.get("rope_type") not in (None, "default"):
            raise CheckpointError(f"{fields.where}: RoPE of layers with a window is scaled, which is not supported")
        base = local.number("rope_theta", base)
    layers = tuple(LOCAL_ROPE if kind == _SLIDING else BASE_ROPE for kind in kinds)
    if LOCAL_ROPE in layers and rope.scaling.attention_factor != 1:
        raise CheckpointError(
            f"{scaling.where}: RoPE scaling {shown(ropes.kind(scaling))} multiplies "
            f"attention by {rope.scaling.attention_factor:g}, in {family.title} not in the layers with a window, and "
            "the simulated runtime has one factor for all layers: take the scaling out of a copy of the file for the "
            "original context"
        )
    return replace(rope, local_theta=base, layers=layers)


def _scaling_values(scaling: Fields, fields: Fields, family: Family) -> dict[str, Any]:
    """The scaling by its usual name. Its original context may stand beside it; which of two rules, releases of
    transformers do not agree on."""
    values, kind = dict(scaling.values), ropes.kind(scaling)
    if family.name == "phi3" and kind == "yarn":  # what its first files call LongRoPE
        values["rope_type"] = kind = "longrope"
    beside, inside = (found.get("original_max_position_embeddings") for found in (fields, scaling))
    if kind in ropes.BY_ORIGINAL_CONTEXT and None not in (beside, inside) and beside != inside:
        raise CheckpointError(
            f"{scaling.where}: original_max_position_embeddings is {shown(inside)} here and {shown(beside)} beside it: "
            "make them the same in a copy of the file"
        )
    if beside is not None:
        values["original_max_position_embeddings"] = beside
    return values


def _rope_layers(fields: Fields, family: Family, layers: int) -> tuple[int, ...]:
    """SmolLM3 leaves RoPE out of some layers: 1 in ``no_rope_layers`` means that there is RoPE."""
    if "no_rope_layer_interval" not in family.defaults:
        return ()
    given = fields.get("no_rope_layers")
    if given is None:
        every = fields.whole("no_rope_layer_interval")
        return tuple(BASE_ROPE if (i + 1) % every else NO_ROPE for i in range(layers))
    if (
        not isinstance(given, list)
        or len(given) < layers
        or not all(type(turns) is int and turns in (0, 1) for turns in given)
    ):
        raise CheckpointError(f"{fields.where}: no_rope_layers is {shown(given)}, expected {layers} of 0 and 1")
    return tuple(BASE_ROPE if turns else NO_ROPE for turns in given[:layers])
