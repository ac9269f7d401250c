"""Compares what our table says a short config.json means with what transformers' configuration classes make of it.

    PYTHONPATH=.:convert:runtime python -m tests.golden_families.configurations

For each family that transformers knows: a config.json with sizes alone, and the published ones. Needs transformers,
but neither torch's models nor the network.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from rk3588.families import FAMILIES, Family
from rkconvert.architectures import config_json
from rkconvert.architectures.model import BASE_ROPE, LOCAL_ROPE, NO_ROPE, ModelConfig
from tests.published_configs import PUBLISHED

SIZES = {
    "hidden_size": 1024, "intermediate_size": 112, "num_hidden_layers": 12, "num_attention_heads": 32,
    "vocab_size": 40000,
}  # fmt: skip
_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
# Files of before: transformers 5 takes Gemma's "gelu" at its word and no longer reads Phi-3's "su".
OTHERWISE = ("gemma-2b", "Phi-3-mini-128k-instruct")
REMOTE = ("internlm2", "minicpm")  # their classes lie beside their weights


def theirs(settings: Mapping[str, Any]) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(dict(settings)))
        config = AutoConfig.from_pretrained(folder)
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


def short(family: Family) -> dict[str, Any]:
    """As little as a config.json may say."""
    return {"architectures": [family.classes[0]], "model_type": family.model_types[0], **SIZES}


def main() -> None:
    settings = {f.title: short(f) for f in FAMILIES if not f.refused and f.name not in REMOTE}
    settings |= {
        name: dict(one.settings) for name, one in PUBLISHED.items()
        if not str(one.settings["model_type"]).startswith(REMOTE) and name not in OTHERWISE
    }  # fmt: skip
    wrong = []
    for name, given in settings.items():
        text, _ = config_json.text_part(given, name)
        for what, (ours, other) in compared(config_json.read_config(text, name), theirs(given)).items():
            same = math.isclose(ours, other, rel_tol=1e-12) if isinstance(ours, float) and other else ours == other
            wrong += [] if same else [f"{name}: {what} is {ours!r} here, {other!r} in transformers"]
    if wrong:
        print("\n".join(wrong), file=sys.stderr)
        sys.exit(1)
    print(f"{len(settings)} configurations mean what transformers reads in them", file=sys.stderr)


if __name__ == "__main__":
    main()
