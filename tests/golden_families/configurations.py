"""Compares what our table says a short config.json means with what transformers' configuration classes make of it.

    PYTHONPATH=.:convert:runtime python -m tests.golden_families.configurations

For each family that transformers knows: every key that is read here, in files that say everything but one or two of
them and in files that say nothing but one or two; each way of scaling RoPE without each of its keys; and the published
files. Needs transformers and torch, but neither models nor the network.
"""

from __future__ import annotations

import copy
import itertools
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from rk3588 import shape
from rk3588.errors import CheckpointError
from rk3588.families import FAMILIES, Family
from rkconvert.architectures import config_json
from rkconvert.architectures.model import BASE_ROPE, LOCAL_ROPE, NO_ROPE, ModelConfig
from tests.published_configs import PUBLISHED

_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
# Files of before: transformers 5 no longer reads Phi-3's "su".
OTHERWISE = ("Phi-3-mini-128k-instruct",)
REMOTE = ("internlm2", "minicpm")  # their classes lie beside their weights
FULL, SLIDING = "full_attention", "sliding_attention"
ROPES = {"rope_scaling", "rope_parameters"}  # by themselves, below
# Where the class says something that its model fails on, or that its releases do not agree on.
REFUSED = ("and some layers are sliding_attention", "here and 4096 beside it", "heads cannot share")


def theirs(settings: Mapping[str, Any]) -> Any:
    config = CONFIG_MAPPING[settings["model_type"]].from_dict(copy.deepcopy(dict(settings)))
    return getattr(config, "text_config", config)


def compared(ours: ModelConfig, config: Any) -> dict[str, tuple[Any, Any]]:
    """What both say: (ours, theirs) by what it is about."""

    def their(key: str, default: Any = None) -> Any:
        value = getattr(config, key, None)
        return default if value is None else value

    ropes = config.rope_parameters
    full = ropes.get("full_attention", ropes)
    head_dim = their("head_dim", config.hidden_size // config.num_attention_heads)
    found = {
        "layers": (ours.layers, config.num_hidden_layers),
        "heads": (ours.heads, config.num_attention_heads),
        "KV heads": (ours.kv_heads, their("num_key_value_heads", config.num_attention_heads)),
        "head size": (ours.head_dim, head_dim),
        "vocabulary": (ours.vocab_size, config.vocab_size),
        "context": (ours.context_length, config.max_position_embeddings),
        "epsilon": (ours.norm_eps, their("rms_norm_eps", their("layer_norm_eps"))),
        "tied": (ours.tied, config.tie_word_embeddings),
        "activation": (ours.activation, _ACTIVATIONS[their("hidden_activation", their("hidden_act"))]),
        "RoPE's base": (ours.rope.theta, full["rope_theta"]),
        "dimensions that turn": (ours.rope.dims, int(head_dim * full.get("partial_rotary_factor", 1.0))),
        "windows": (tuple(ours.windows) or (0,) * ours.layers, windows(config)),
        "soft cap": (ours.attention_soft_cap, their("attn_logit_softcapping")),
        "logits' soft cap": (ours.logit_soft_cap, their("final_logit_softcapping")),
        "scale of queries": (ours.attention_scale or head_dim**-0.5, their("query_pre_attn_scalar", head_dim) ** -0.5),
        "bias of output": ("attn_output" in ours.biases, bool(their("attention_bias", config.model_type == "phi"))),
    }
    if "full_attention" in ropes:
        found["base of layers with a window"] = (ours.rope.local_theta, ropes["sliding_attention"]["rope_theta"])
        kinds = [LOCAL_ROPE if kind == "sliding_attention" else BASE_ROPE for kind in config.layer_types]
        found["kinds of RoPE"] = (ours.rope.layers, tuple(kinds))
    if hasattr(config, "no_rope_layers"):
        turn = [BASE_ROPE if turns else NO_ROPE for turns in config.no_rope_layers]
        found["layers without RoPE"] = (ours.rope.layers, tuple(turn))
    return found


def windows(config: Any) -> tuple[int, ...]:
    window: int | None = getattr(config, "sliding_window", None)
    layers: int = config.num_hidden_layers
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * layers
    if window is None or window >= config.max_position_embeddings:
        return (0,) * layers
    return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)


def keys_of(family: Family) -> set[str]:
    """What is read of a config.json of the family, as it calls it."""
    known = {*config_json.COMMON, *family.defaults, *family.known, *family.bias_keys}
    elsewhere = ROPES | ({"hidden_activation"} if family.name == "gemma" else set())  # not read any more
    return {family.keys.get(key, key) for key in known} - elsewhere


def full(family: Family) -> dict[str, Any]:
    """A file that says everything, and nothing as it would be if it were left out."""
    layers = 12
    values: dict[str, Any] = {
        "hidden_size": 1536, "intermediate_size": 112, "num_hidden_layers": layers, "num_attention_heads": 64,
        "num_key_value_heads": 2, "head_dim": 48, "vocab_size": 40000, "max_position_embeddings": 60000,
        "rms_norm_eps": 1e-3, "layer_norm_eps": 1e-3, "rope_theta": 12345.0, "partial_rotary_factor": 0.25,
        "tie_word_embeddings": not (family.defaults["tie_word_embeddings"] or "output" in family.biases),
        "sliding_window": 100,
        "max_window_layers": 3, "use_sliding_window": True, "query_pre_attn_scalar": 100,
        "attn_logit_softcapping": 7.0, "final_logit_softcapping": 9.0, "rope_local_base_freq": 777.0,
        "sliding_window_pattern": 4, "no_rope_layer_interval": 3, "attention_bias": True, "mlp_bias": True,
        "no_rope_layers": [0, 1, 1] * 4, "layer_types": [SLIDING, FULL, FULL] * 4,
        "original_max_position_embeddings": 5000,
    }  # fmt: skip
    other = "silu" if family.activation == "gelu_tanh" else "gelu_pytorch_tanh"
    values |= {"hidden_act": other, "hidden_activation": other}
    return {"model_type": family.model_types[0], **{key: values[key] for key in sorted(keys_of(family))}}


def short_files(family: Family) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each with what to call it; the lists of layers go with their number."""
    whole = full(family)
    keys = sorted(keys_of(family))
    for gone in [(), *((key,) for key in keys), *itertools.combinations(keys, 2)]:
        lists = {"layer_types", "no_rope_layers"} if "num_hidden_layers" in gone else set()
        yield f"without {gone}", {key: value for key, value in whole.items() if key not in {*gone, *lists}}
    for there in [(), *((key,) for key in keys), *itertools.combinations(keys, 2)]:
        kept = {"model_type", *there}
        if kept & {"layer_types", "no_rope_layers"}:
            kept.add("num_hidden_layers")
        yield f"with {there} alone", {key: value for key, value in whole.items() if key in kept}


def scalings() -> Iterator[tuple[str, dict[str, Any]]]:
    """Each way of scaling RoPE, whole, without each of its keys, and in either of the places where it may stand."""
    sizes: dict[str, Any] = {"hidden_size": 512, "num_attention_heads": 8, "max_position_embeddings": 4096}
    factors = {"short_factor": [1.0 + i / 10 for i in range(32)], "long_factor": [2.0 + i for i in range(32)]}
    original = {"original_max_position_embeddings": 1000}
    ways: dict[str, dict[str, Any]] = {
        "linear": {"factor": 3.0},
        "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **original},
        "yarn": {"factor": 5.0, "beta_fast": 20.0, "beta_slow": 2.0, "attention_factor": 1.4, "mscale": 0.7,
                 "mscale_all_dim": 0.3, "truncate": False, **original},
        "longrope": {"factor": 6.0, "attention_factor": 1.3, **factors, **original},
    }  # fmt: skip
    for kind, whole in ways.items():
        for gone in itertools.chain.from_iterable(itertools.combinations(sorted(whole), n) for n in range(4)):
            scaling = {"rope_type": kind, **{key: value for key, value in whole.items() if key not in gone}}
            for model_type in ("llama", "qwen2", "phi3"):
                outside = {**sizes, "model_type": model_type, "rope_theta": 5000.0}
                if model_type == "phi3":
                    if kind != "longrope":  # the only one that it has
                        continue
                    outside["original_max_position_embeddings"] = 1000
                yield f"{model_type} {kind} without {gone}", {**outside, "rope_scaling": scaling}
                yield f"{model_type} {kind} without {gone}, in rope_parameters", {**outside, "rope_parameters": scaling}
    for place in ("full_attention", "sliding_attention"):
        for inside in ({}, {"rope_theta": 999.0}, {"rope_type": "default"}):
            given = {"model_type": "gemma3_text", "rope_parameters": {place: inside}}
            yield f"gemma3 with {inside} for {place} alone", given


def frequencies(config: Any, length: int) -> tuple[list[float], float]:
    """What transformers turns by where so many positions are seen, and what it multiplies by."""
    import torch

    ropes = config.rope_parameters
    kind = "full_attention" if "full_attention" in ropes else None
    way = (ropes[kind] if kind else ropes)["rope_type"]
    if way != "default":
        inverse, factor = ROPE_INIT_FUNCTIONS[way](config, torch.device("cpu"), length, layer_type=kind)
        return inverse.double().tolist(), float(factor)
    return [], 1.0


def wrong_rope(ours: ModelConfig, config: Any) -> Iterator[str]:
    """In a short context and in a long one."""
    rope, scaling = ours.rope, ours.rope.scaling
    plain = [rope.theta ** (-2 * i / rope.dims) for i in range(rope.dims // 2)]
    for length, factors in ((10, scaling.factors), (1 << 20, scaling.long_factors or scaling.factors)):
        wanted, factor = frequencies(config, length)
        found = [one / by for one, by in zip(plain, factors or [1.0] * len(plain), strict=True)]
        near = all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(found, wanted or plain, strict=True))
        if not near or not math.isclose(scaling.attention_factor, factor, rel_tol=1e-6):
            yield f"RoPE at {length} positions: {found[:3]} by {scaling.attention_factor}, not {wanted[:3]} by {factor}"


def differences(given: Mapping[str, Any]) -> Iterator[str]:
    """What is otherwise here than in transformers; a file that neither takes is the same in both."""
    try:
        text, _ = config_json.text_part(given, "config.json")
        ours = config_json.read_config(text, "config.json")
    except CheckpointError as error:
        ours = None
        refusal = str(error)
    try:
        config = theirs(given)
        rope = list(wrong_rope(ours, config)) if ours else [str(frequencies(config, 10))]
    except Exception as error:
        if ours:
            yield f"is taken here, and transformers fails: {error!r:.200}"
        return
    if ours is None:
        if not any(known in refusal for known in REFUSED):
            yield f"is refused: {refusal}"
        return
    yield from rope
    for what, (mine, other) in compared(ours, config).items():
        same = math.isclose(mine, other, rel_tol=1e-12) if isinstance(mine, float) and other else mine == other
        if not same:
            yield f"{what} is {mine!r} here, {other!r} in transformers"
    counted = shape.from_config(dict(given), Path("m/config.json")).total_params
    if counted != (tensors := ours.shape("m").total_params):
        yield f"predict counts {counted} parameters, and there are {tensors}"


def main() -> None:
    families = [f for f in FAMILIES if not f.refused and f.name not in REMOTE]
    files = [(f"{f.title}, {name}", given) for f in families for name, given in short_files(f)]
    files += scalings()
    files += [
        (name, dict(one.settings)) for name, one in PUBLISHED.items()
        if not str(one.settings["model_type"]).startswith(REMOTE) and name not in OTHERWISE
    ]  # fmt: skip
    wrong = [f"{name}: {difference}" for name, given in files for difference in differences(given)]
    if wrong:
        print("\n".join(wrong), file=sys.stderr)
        sys.exit(1)
    print(f"{len(files)} configurations mean what transformers reads in them", file=sys.stderr)


if __name__ == "__main__":
    main()
