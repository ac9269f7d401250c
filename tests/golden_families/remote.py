"""Tiny models of families whose code is not transformers' but their authors', and their logits in plain NumPy.

Written from the authors' code and papers, in float64, one token after the other where that is plainer; it shares
nothing with the converter, the artifact or the runtime.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.golden_families import cases

Array = npt.NDArray[np.float64]
HIDDEN, WIDE, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 64, 112, 3, 4, 2, 16

_SIZES = {
    "hidden_size": HIDDEN, "intermediate_size": WIDE, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS, "vocab_size": cases.VOCABULARY, "max_position_embeddings": 512,
    "hidden_act": "silu", "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_INTERN = {"architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", **_SIZES, "rope_theta": 1000000}
_MINICPM = {
    "architectures": ["MiniCPMForCausalLM"], "model_type": "minicpm", **_SIZES, "scale_emb": 12, "scale_depth": 1.4,
    "dim_model_base": 48,
}  # fmt: skip
_LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0 + 0.1 * i for i in range(HEAD_DIM // 2)],
    "long_factor": [1.5 + 0.4 * i for i in range(HEAD_DIM // 2)],
    "original_max_position_embeddings": 16,
}
CASES: Mapping[str, Mapping[str, Any]] = {
    "internlm2": {**_INTERN, "bias": False},
    "internlm2_dynamic": {**_INTERN, "bias": True, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "minicpm": _MINICPM,
    "minicpm4": {
        **_MINICPM, "tie_word_embeddings": False, "rope_scaling": _LONG, "max_position_embeddings": 128,
        "mup_denominator": 32, "sparse_config": {"kernel_size": 32, "topk": 64},
    },
}  # fmt: skip


def weights(name: str) -> dict[str, npt.NDArray[np.float32]]:
    """Every tensor of a case, by its name in the checkpoint."""
    return {key: cases.weight(key, shape, False) for key, shape in _shapes(CASES[name]).items()}


def _shapes(settings: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    q, kv, vocabulary = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM, cases.VOCABULARY
    intern = settings["model_type"] == "internlm2"
    found: dict[str, tuple[int, ...]] = {}
    for i in range(LAYERS):
        at = f"model.layers.{i}."
        if intern:
            layer = {
                "attention_norm": (HIDDEN,), "ffn_norm": (HIDDEN,), "attention.wqkv": (q + 2 * kv, HIDDEN),
                "attention.wo": (HIDDEN, q), "feed_forward.w1": (WIDE, HIDDEN), "feed_forward.w3": (WIDE, HIDDEN),
                "feed_forward.w2": (HIDDEN, WIDE),
            }  # fmt: skip
        else:
            layer = {
                "input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,), "self_attn.q_proj": (q, HIDDEN),
                "self_attn.k_proj": (kv, HIDDEN), "self_attn.v_proj": (kv, HIDDEN), "self_attn.o_proj": (HIDDEN, q),
                "mlp.gate_proj": (WIDE, HIDDEN), "mlp.up_proj": (WIDE, HIDDEN), "mlp.down_proj": (HIDDEN, WIDE),
            }  # fmt: skip
        found |= {f"{at}{module}.weight": shape for module, shape in layer.items()}
        if settings.get("bias"):
            found |= {f"{at}{module}.bias": (layer[module][0],) for module in ("attention.wqkv", "attention.wo")}
    embedding, head = ("model.tok_embeddings", "output") if intern else ("model.embed_tokens", "lm_head")
    found |= {f"{embedding}.weight": (vocabulary, HIDDEN), "model.norm.weight": (HIDDEN,)}
    if not settings.get("tie_word_embeddings", not intern):
        found[f"{head}.weight"] = (vocabulary, HIDDEN)
    return found


def _norm(x: Array, gain: Array) -> Array:
    return np.asarray(x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * gain)


def _turned(x: Array, settings: Mapping[str, Any]) -> Array:
    """RoPE of (tokens, heads, head_dim), the second half of a head beside its first."""
    scaling = settings.get("rope_scaling") or {}
    divisors, attention = np.ones(HEAD_DIM // 2), 1.0
    if scaling.get("rope_type") == "longrope":
        original, longest = scaling["original_max_position_embeddings"], settings["max_position_embeddings"]
        divisors = np.array(scaling["long_factor" if len(x) > original else "short_factor"])
        attention = math.sqrt(1 + math.log(longest / original) / math.log(original))
    # "dynamic" changes the base only beyond max_position_embeddings.
    frequency = settings.get("rope_theta", 10000) ** -(np.arange(0, HEAD_DIM, 2) / HEAD_DIM) / divisors
    angle = np.arange(len(x))[:, None] * frequency
    cos, sin = np.cos(angle)[:, None] * attention, np.sin(angle)[:, None] * attention
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _attention(q: Array, k: Array, v: Array) -> Array:
    """Causal; (tokens, heads, head_dim) to (tokens, heads * head_dim)."""
    tokens, repeats = len(q), q.shape[1] // k.shape[1]
    k, v = k.repeat(repeats, axis=1), v.repeat(repeats, axis=1)
    scores = np.einsum("qhd,khd->hqk", q, k) / math.sqrt(HEAD_DIM)
    scores = np.where(np.tri(tokens, dtype=bool), scores, -np.inf)
    share = np.exp(scores - scores.max(-1, keepdims=True))
    share /= share.sum(-1, keepdims=True)
    return np.asarray(np.einsum("hqk,khd->qhd", share, v).reshape(tokens, -1))


def _silu(x: Array) -> Array:
    return np.asarray(x / (1 + np.exp(-x)))


def logits(name: str, ids: list[int], changes: Mapping[str, Array] | None = None) -> Array:
    """Of a case; ``changes`` are added to its weights, by their names."""
    settings = CASES[name]
    tensors = {key: value.astype(np.float64) for key, value in weights(name).items()}
    for key, change in (changes or {}).items():
        tensors[key] = tensors[key] + change
    return (_internlm2 if settings["model_type"] == "internlm2" else _minicpm)(settings, tensors, ids)


def _internlm2(settings: Mapping[str, Any], w: dict[str, Array], ids: list[int]) -> Array:
    group = HEADS // KV_HEADS
    h = w["model.tok_embeddings.weight"][ids]
    for i in range(LAYERS):
        at = f"model.layers.{i}."
        x = _norm(h, w[f"{at}attention_norm.weight"])
        qkv = x @ w[f"{at}attention.wqkv.weight"].T + w.get(f"{at}attention.wqkv.bias", 0)
        # Its rows: for each KV head the queries that share it, then its key, then its value.
        by_head = qkv.reshape(len(ids), KV_HEADS, group + 2, HEAD_DIM)
        q = by_head[:, :, :group].reshape(len(ids), HEADS, HEAD_DIM)
        mixed = _attention(_turned(q, settings), _turned(by_head[:, :, -2], settings), by_head[:, :, -1])
        h = h + mixed @ w[f"{at}attention.wo.weight"].T + w.get(f"{at}attention.wo.bias", 0)
        x = _norm(h, w[f"{at}ffn_norm.weight"])
        gate, up = x @ w[f"{at}feed_forward.w1.weight"].T, x @ w[f"{at}feed_forward.w3.weight"].T
        h = h + (_silu(gate) * up) @ w[f"{at}feed_forward.w2.weight"].T
    return np.asarray(_norm(h, w["model.norm.weight"]) @ w["output.weight"].T)


def _minicpm(settings: Mapping[str, Any], w: dict[str, Array], ids: list[int]) -> Array:
    depth = settings["scale_depth"] / math.sqrt(LAYERS)
    h = w["model.embed_tokens.weight"][ids] * settings["scale_emb"]
    for i in range(LAYERS):
        at = f"model.layers.{i}."
        x = _norm(h, w[f"{at}input_layernorm.weight"])
        q, k, v = (
            (x @ w[f"{at}self_attn.{kind}_proj.weight"].T).reshape(len(ids), -1, HEAD_DIM) for kind in ("q", "k", "v")
        )
        mixed = _attention(_turned(q, settings), _turned(k, settings), v)
        h = h + mixed @ w[f"{at}self_attn.o_proj.weight"].T * depth
        x = _norm(h, w[f"{at}post_attention_layernorm.weight"])
        gate, up = x @ w[f"{at}mlp.gate_proj.weight"].T, x @ w[f"{at}mlp.up_proj.weight"].T
        h = h + (_silu(gate) * up) @ w[f"{at}mlp.down_proj.weight"].T * depth
    h = _norm(h, w["model.norm.weight"]) / (HIDDEN / settings["dim_model_base"])
    return np.asarray(h @ w.get("lm_head.weight", w["model.embed_tokens.weight"]).T)
