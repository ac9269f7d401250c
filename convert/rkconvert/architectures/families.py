"""The families that the simulated runtime computes: a row each, of what its checkpoints call things and leave unsaid.

Sources: the configuration and model classes of transformers 5, llama.cpp's converter for GGUF, and for families of
remote code the code that their authors publish beside the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .model import ATTENTION

_QKV = ("attn_q", "attn_k", "attn_v")
_MLP = ("ffn_gate", "ffn_up", "ffn_down")
# How several layers lie in one tensor: one after the other, or by KV head, each with its queries, its key, its value.
STACKED, BY_KV_HEAD = "stacked", "by KV head"

_LLAMA_PARTS = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
_HEAD_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
_POST_NORMS = {
    "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip
_LLAMA_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


@dataclass(frozen=True)
class Fused:
    """One tensor of a checkpoint that is several of ours."""

    parts: tuple[str, ...]
    order: str = STACKED


@dataclass(frozen=True)
class Family:
    """``parts`` and ``top`` are canonical names by those in a Hugging Face checkpoint, in a layer and beside them.

    ``defaults`` are what a config.json may leave out, ``keys`` what it calls a usual key. ``bias_keys``: the layers
    that have a bias where the config sets that key. ``layer_kinds``: how layers see all positions or a window, where
    the config does not list them: "full", "sliding", "every N" (each Nth full), "from max_window_layers".
    """

    name: str  # llama.cpp's name of the architecture; adapters go by it
    title: str
    classes: tuple[str, ...]  # `architectures` of config.json
    model_types: tuple[str, ...]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=lambda: _LLAMA_PARTS)
    top: Mapping[str, str] = field(default_factory=lambda: _LLAMA_TOP)
    fused: Mapping[str, Fused] = field(default_factory=dict)
    biases: tuple[str, ...] = ()
    bias_keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    layer_norm: bool = False
    gain_plus_one: bool = False  # the checkpoint's RMSNorm gains are what is added to 1
    head_norms: bool = False
    post_norms: bool = False
    parallel: bool = False
    gated: bool = True
    activation: str = "silu"  # of a GGUF file, which does not say it
    layer_kinds: str = "full"
    embedding_scale: str = ""  # "sqrt hidden", or the config's key
    residual_scale: str = ""  # the key of what is divided by sqrt(layers)
    logit_scale: str = ""  # the key of what is divided by the hidden size
    gguf_interleaved: bool = False  # llama.cpp keeps the rows of Q and K interleaved
    gguf_fused: Mapping[str, Fused] = field(default_factory=dict)
    refused: str = ""  # why it is known and not converted


_BIAS_KEYS = {"attention_bias": ATTENTION, "mlp_bias": _MLP}
_LLAMA_DEFAULTS = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "max_position_embeddings": 2048, "rope_theta": 10000.0}
_GEMMA_DEFAULTS = {
    "head_dim": 256, "rms_norm_eps": 1e-6, "max_position_embeddings": 8192, "rope_theta": 10000.0,
    "tie_word_embeddings": True, "hidden_act": "gelu_pytorch_tanh",
}  # fmt: skip
_QWEN_DEFAULTS = {**_LLAMA_DEFAULTS, "max_position_embeddings": 32768, "sliding_window": 4096, "max_window_layers": 28,
                  "use_sliding_window": False}  # fmt: skip
_PHI3_FUSED = {"self_attn.qkv_proj": Fused(_QKV), "mlp.gate_up_proj": Fused(("ffn_gate", "ffn_up"))}
_MINICPM_DEFAULTS = {**_LLAMA_DEFAULTS, "tie_word_embeddings": True, "scale_emb": 1, "scale_depth": 1,
                     "dim_model_base": 1}  # fmt: skip

FAMILIES = (
    Family(
        "llama", "Llama (2 to 3.2, TinyLlama, SmolLM2)", ("LlamaForCausalLM",), ("llama",),
        _LLAMA_DEFAULTS, bias_keys=_BIAS_KEYS, gguf_interleaved=True,
    ),
    Family(
        "llama", "Mistral 7B", ("MistralForCausalLM",), ("mistral",),
        {**_LLAMA_DEFAULTS, "num_key_value_heads": 8, "max_position_embeddings": 131072}, layer_kinds="sliding",
        gguf_interleaved=True,
    ),
    Family(
        "llama", "Ministral 8B", ("MinistralForCausalLM",), ("ministral",),
        {**_LLAMA_DEFAULTS, "num_key_value_heads": 8, "max_position_embeddings": 131072}, layer_kinds="sliding",
        gguf_interleaved=True,
    ),
    Family(
        "qwen2", "Qwen2, Qwen2.5 and DeepSeek-R1's distillations into them", ("Qwen2ForCausalLM",), ("qwen2",),
        {**_QWEN_DEFAULTS, "num_key_value_heads": 32}, biases=_QKV, layer_kinds="from max_window_layers",
    ),
    Family(
        "qwen3", "Qwen3", ("Qwen3ForCausalLM",), ("qwen3",),
        {**_QWEN_DEFAULTS, "num_key_value_heads": 32, "head_dim": 128}, parts={**_LLAMA_PARTS, **_HEAD_NORMS},
        bias_keys={"attention_bias": ATTENTION}, head_norms=True, layer_kinds="from max_window_layers",
    ),
    Family(
        "phi3", "Phi-3, Phi-3.5 and Phi-4-mini", ("Phi3ForCausalLM",), ("phi3",),
        {**_LLAMA_DEFAULTS, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096,
         "original_max_position_embeddings": 4096},
        fused=_PHI3_FUSED, layer_kinds="sliding",
        gguf_fused={"attn_qkv": Fused(_QKV), "ffn_up": Fused(("ffn_gate", "ffn_up"))},
    ),
    Family(
        "phi2", "Phi-1, Phi-1.5 and Phi-2", ("PhiForCausalLM",), ("phi",),
        {"hidden_act": "gelu_new", "rms_norm_eps": 1e-5, "max_position_embeddings": 2048, "rope_theta": 10000.0,
         "partial_rotary_factor": 0.5},
        keys={"rms_norm_eps": "layer_norm_eps"},
        parts={
            "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
            "self_attn.v_proj": "attn_v", "self_attn.dense": "attn_output", "mlp.fc1": "ffn_up", "mlp.fc2": "ffn_down",
        },
        top={**_LLAMA_TOP, "model.final_layernorm": "output_norm"},
        biases=(*ATTENTION, "ffn_up", "ffn_down", "output"), layer_norm=True, parallel=True, gated=False,
        activation="gelu_tanh",
        gguf_fused={"attn_qkv": Fused(_QKV)},
    ),
    Family(
        "gemma", "Gemma 1", ("GemmaForCausalLM",), ("gemma",), {**_GEMMA_DEFAULTS, "num_key_value_heads": 16},
        bias_keys={"attention_bias": ATTENTION}, gain_plus_one=True, activation="gelu_tanh",
        embedding_scale="sqrt hidden",
    ),
    Family(
        "gemma2", "Gemma 2", ("Gemma2ForCausalLM",), ("gemma2",),
        {**_GEMMA_DEFAULTS, "num_key_value_heads": 4, "query_pre_attn_scalar": 256, "sliding_window": 4096,
         "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        keys={"hidden_act": "hidden_activation"}, parts={**_LLAMA_PARTS, **_POST_NORMS},
        bias_keys={"attention_bias": ATTENTION}, gain_plus_one=True, post_norms=True, layer_kinds="every 2",
        activation="gelu_tanh", embedding_scale="sqrt hidden",
    ),
    Family(
        "gemma3", "Gemma 3 (text)", ("Gemma3ForCausalLM",), ("gemma3_text",),
        {**_GEMMA_DEFAULTS, "num_key_value_heads": 4, "query_pre_attn_scalar": 256, "sliding_window": 4096,
         "max_position_embeddings": 131072, "rope_theta": 1e6, "rope_local_base_freq": 10000.0,
         "sliding_window_pattern": 6},
        keys={"hidden_act": "hidden_activation"}, parts={**_LLAMA_PARTS, **_POST_NORMS, **_HEAD_NORMS},
        bias_keys={"attention_bias": ATTENTION}, gain_plus_one=True, head_norms=True, post_norms=True,
        layer_kinds="every 6", activation="gelu_tanh", embedding_scale="sqrt hidden",
    ),
    Family(
        "smollm3", "SmolLM3", ("SmolLM3ForCausalLM",), ("smollm3",),
        {**_LLAMA_DEFAULTS, "num_key_value_heads": 4, "max_position_embeddings": 32768, "rope_theta": 2e6,
         "tie_word_embeddings": True, "no_rope_layer_interval": 4, "use_sliding_window": False},
        bias_keys=_BIAS_KEYS, gguf_interleaved=True,
    ),
    Family(
        "internlm2", "InternLM2 and InternLM2.5", ("InternLM2ForCausalLM",), ("internlm2",),
        {**_LLAMA_DEFAULTS, "bias": False}, bias_keys={"bias": ATTENTION},
        parts={
            "attention_norm": "attn_norm", "attention.wo": "attn_output", "ffn_norm": "ffn_norm",
            "feed_forward.w1": "ffn_gate", "feed_forward.w3": "ffn_up", "feed_forward.w2": "ffn_down",
        },
        top={"model.tok_embeddings": "token_embd", "model.norm": "output_norm", "output": "output"},
        fused={"attention.wqkv": Fused(_QKV, BY_KV_HEAD)}, gguf_interleaved=True,
    ),
    Family(
        "minicpm", "MiniCPM 1, 2 and 4 (its attention dense)", ("MiniCPMForCausalLM",), ("minicpm",),
        _MINICPM_DEFAULTS, embedding_scale="scale_emb", residual_scale="scale_depth", logit_scale="dim_model_base",
        gguf_interleaved=True,
    ),
    Family(
        "minicpm3", "MiniCPM3", ("MiniCPM3ForCausalLM",), ("minicpm3",),
        refused="its latent attention (MLA) is no feature of the simulated runtime's transformer",
    ),
    Family(
        "chatglm", "ChatGLM3", ("ChatGLMModel", "ChatGLMForConditionalGeneration"), ("chatglm",),
        refused="its tokenizer is no tokenizer.json, and its special tokens are known to its own code only",
    ),
    Family(
        "telechat2", "TeleChat2", ("TeleChat2ForCausalLM", "TelechatForCausalLM"), ("telechat",),
        refused="its fused layers and its tokenizer are known to its own code only",
    ),
)  # fmt: skip


def converted() -> str:
    """The families that are converted for the simulated runtime, for a sentence."""
    return ", ".join(family.title for family in FAMILIES if not family.refused)
