"""The families of models that are known here, a row each: predictions, conversion and rkllm-toolkit's checks read it.

A row says what a family's checkpoints call things and leave unsaid, which features its transformer has, and from which
rkllm-toolkit on Rockchip takes it. Sources: the configuration and model classes of transformers 5, llama.cpp's
converter for GGUF, for families of remote code the code that their authors publish beside the weights, and Rockchip's
lists of models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")  # canonical names are llama.cpp's
QKV = ("attn_q", "attn_k", "attn_v")
MLP = ("ffn_gate", "ffn_up", "ffn_down")
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

    ``defaults`` and ``sizes`` are what a config.json may leave out, ``keys`` what it calls a usual key, ``known`` its
    settings that have no default. ``bias_keys``: the layers that have a bias where the config sets that key.
    ``layer_kinds``: how layers see all positions or a window, where the config does not list them: "full", "sliding",
    "every N" (each Nth full), "from max_window_layers", "where no RoPE is".
    """

    name: str  # llama.cpp's name of the architecture; adapters go by it
    title: str
    classes: tuple[str, ...]  # `architectures` of config.json
    model_types: tuple[str, ...]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)  # empty: a config.json has to say them
    known: tuple[str, ...] = ()
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
    toolkit: str = ""  # the first rkllm-toolkit known to take it; "": none is
    in_gguf: bool = True  # llama.cpp, and so rkllm-toolkit, has it as GGUF
    text_of: tuple[str, ...] = ()  # classes of models with images, whose language model this is
    refused: str = ""  # why it is known and not converted
    unpredicted: bool = False  # its parameters are not counted, either


def _sizes(layers: int, hidden: int, intermediate: int, heads: int, vocabulary: int) -> dict[str, int]:
    return {
        "num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": intermediate,
        "num_attention_heads": heads, "vocab_size": vocabulary,
    }  # fmt: skip


_BIAS_KEYS = {"attention_bias": ATTENTION, "mlp_bias": MLP}
_ATTENTION_BIAS = {"attention_bias": ATTENTION}
_LLAMA_DEFAULTS = {
    "hidden_act": "silu", "rms_norm_eps": 1e-6, "max_position_embeddings": 2048, "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}  # fmt: skip
_MISTRAL_DEFAULTS = {
    **_LLAMA_DEFAULTS, "num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096,
}  # fmt: skip
_MISTRAL_SIZES = _sizes(32, 4096, 14336, 32, 32000)
_QWEN_SIZES = _sizes(32, 4096, 22016, 32, 151936)
_QWEN_DEFAULTS = {
    **_LLAMA_DEFAULTS, "num_key_value_heads": 32, "max_position_embeddings": 32768, "sliding_window": 4096,
    "max_window_layers": 28, "use_sliding_window": False,
}  # fmt: skip
_GEMMA_DEFAULTS = {
    "head_dim": 256, "rms_norm_eps": 1e-6, "max_position_embeddings": 8192, "rope_theta": 10000.0,
    "tie_word_embeddings": True, "hidden_act": "gelu_pytorch_tanh",
}  # fmt: skip
_PHI3_FUSED = {"self_attn.qkv_proj": Fused(QKV), "mlp.gate_up_proj": Fused(("ffn_gate", "ffn_up"))}
_PHI3_PARTS = {name: _LLAMA_PARTS[name] for name in (
    "input_layernorm", "self_attn.o_proj", "post_attention_layernorm", "mlp.down_proj",
)}  # fmt: skip
_PHI2_PARTS = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.dense": "attn_output", "mlp.fc1": "ffn_up", "mlp.fc2": "ffn_down",
}  # fmt: skip
_INTERNLM2_PARTS = {
    "attention_norm": "attn_norm", "attention.wo": "attn_output", "ffn_norm": "ffn_norm",
    "feed_forward.w1": "ffn_gate", "feed_forward.w3": "ffn_up", "feed_forward.w2": "ffn_down",
}  # fmt: skip
_CHATGLM_KEYS = {
    "num_hidden_layers": "num_layers", "intermediate_size": "ffn_hidden_size",
    "num_key_value_heads": "multi_query_group_num", "head_dim": "kv_channels", "vocab_size": "padded_vocab_size",
    "max_position_embeddings": "seq_length",
}  # fmt: skip

FAMILIES = (
    Family(
        "llama", "Llama (2 to 3.2, TinyLlama, SmolLM2)", ("LlamaForCausalLM",), ("llama",),
        _LLAMA_DEFAULTS, _sizes(32, 4096, 11008, 32, 32000), bias_keys=_BIAS_KEYS, gguf_interleaved=True,
        toolkit="1.1.1",
    ),
    Family(
        "llama", "Mistral 7B", ("MistralForCausalLM",), ("mistral",), _MISTRAL_DEFAULTS, _MISTRAL_SIZES,
        layer_kinds="sliding", gguf_interleaved=True,
    ),
    Family(
        "llama", "Ministral 8B", ("MinistralForCausalLM",), ("ministral",), _MISTRAL_DEFAULTS, _MISTRAL_SIZES,
        ("layer_types",), layer_kinds="sliding", gguf_interleaved=True,
    ),
    Family(
        "qwen2", "Qwen2, Qwen2.5 and DeepSeek-R1's distillations into them", ("Qwen2ForCausalLM",), ("qwen2",),
        _QWEN_DEFAULTS, _QWEN_SIZES, ("layer_types",), biases=QKV, layer_kinds="from max_window_layers",
        toolkit="1.1.1",
    ),
    Family(
        "qwen3", "Qwen3", ("Qwen3ForCausalLM",), ("qwen3",), {**_QWEN_DEFAULTS, "head_dim": 128}, _QWEN_SIZES,
        ("layer_types",), parts={**_LLAMA_PARTS, **_HEAD_NORMS}, bias_keys=_ATTENTION_BIAS, head_norms=True,
        layer_kinds="from max_window_layers", toolkit="1.2.1",
    ),
    Family(
        "phi3", "Phi-3, Phi-3.5 and Phi-4-mini", ("Phi3ForCausalLM",), ("phi3",),
        {**_LLAMA_DEFAULTS, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096,
         "original_max_position_embeddings": 4096, "partial_rotary_factor": 1.0},
        _sizes(32, 3072, 8192, 32, 32064), ("sliding_window",), parts=_PHI3_PARTS, fused=_PHI3_FUSED,
        layer_kinds="sliding", gguf_fused={"attn_qkv": Fused(QKV), "ffn_up": Fused(("ffn_gate", "ffn_up"))},
        toolkit="1.1.1",
    ),
    Family(
        "phi2", "Phi-1, Phi-1.5 and Phi-2", ("PhiForCausalLM",), ("phi",),
        {**_LLAMA_DEFAULTS, "hidden_act": "gelu_new", "rms_norm_eps": 1e-5, "partial_rotary_factor": 0.5},
        _sizes(24, 2048, 8192, 32, 51200), keys={"rms_norm_eps": "layer_norm_eps"}, parts=_PHI2_PARTS,
        top={"model.embed_tokens": "token_embd", "model.final_layernorm": "output_norm", "lm_head": "output"},
        biases=(*ATTENTION, "ffn_up", "ffn_down", "output"), layer_norm=True, parallel=True, gated=False,
        activation="gelu_tanh", gguf_fused={"attn_qkv": Fused(QKV)}, toolkit="1.1.1",
    ),
    Family(
        "gemma", "Gemma 1", ("GemmaForCausalLM",), ("gemma",), {**_GEMMA_DEFAULTS, "num_key_value_heads": 16},
        _sizes(28, 3072, 24576, 16, 256000), ("hidden_activation",), bias_keys=_ATTENTION_BIAS, gain_plus_one=True,
        activation="gelu_tanh", embedding_scale="sqrt hidden", toolkit="1.1.1",
    ),
    Family(
        "gemma2", "Gemma 2", ("Gemma2ForCausalLM",), ("gemma2",),
        {**_GEMMA_DEFAULTS, "num_key_value_heads": 4, "query_pre_attn_scalar": 256, "sliding_window": 4096,
         "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        _sizes(26, 2304, 9216, 8, 256000), ("layer_types",), keys={"hidden_act": "hidden_activation"},
        parts={**_LLAMA_PARTS, **_POST_NORMS}, bias_keys=_ATTENTION_BIAS, gain_plus_one=True, post_norms=True,
        layer_kinds="every 2", activation="gelu_tanh", embedding_scale="sqrt hidden", toolkit="1.1.1",
    ),
    Family(
        "gemma3", "Gemma 3 (text)", ("Gemma3ForCausalLM",), ("gemma3_text",),
        {**_GEMMA_DEFAULTS, "num_key_value_heads": 4, "query_pre_attn_scalar": 256, "sliding_window": 4096,
         "max_position_embeddings": 131072, "rope_theta": 1e6, "rope_local_base_freq": 10000.0,
         "sliding_window_pattern": 6},
        _sizes(26, 2304, 9216, 8, 262208), ("layer_types", "attn_logit_softcapping", "final_logit_softcapping"),
        keys={"hidden_act": "hidden_activation"},
        parts={**_LLAMA_PARTS, **_POST_NORMS, **_HEAD_NORMS}, bias_keys=_ATTENTION_BIAS, gain_plus_one=True,
        head_norms=True, post_norms=True, layer_kinds="every 6", activation="gelu_tanh",
        embedding_scale="sqrt hidden", toolkit="1.2.0", text_of=("Gemma3ForConditionalGeneration",),
    ),
    Family(
        "smollm3", "SmolLM3", ("SmolLM3ForCausalLM",), ("smollm3",),
        {**_LLAMA_DEFAULTS, "num_key_value_heads": 4, "max_position_embeddings": 32768, "rope_theta": 2e6,
         "tie_word_embeddings": True, "no_rope_layer_interval": 4, "use_sliding_window": False},
        _sizes(36, 2048, 11008, 16, 128256), ("no_rope_layers", "layer_types", "sliding_window", "max_window_layers"),
        bias_keys=_BIAS_KEYS, gguf_interleaved=True, layer_kinds="where no RoPE is", toolkit="1.3.0",
    ),
    Family(
        "internlm2", "InternLM2 and InternLM2.5", ("InternLM2ForCausalLM",), ("internlm2",),
        {**_LLAMA_DEFAULTS, "bias": True}, bias_keys={"bias": ATTENTION}, parts=_INTERNLM2_PARTS,
        top={"model.tok_embeddings": "token_embd", "model.norm": "output_norm", "output": "output"},
        fused={"attention.wqkv": Fused(QKV, BY_KV_HEAD)}, gguf_interleaved=True, toolkit="1.1.1",
    ),
    Family(
        "minicpm", "MiniCPM 1, 2 and 4 (its attention dense)", ("MiniCPMForCausalLM",), ("minicpm",),
        {**_LLAMA_DEFAULTS, "tie_word_embeddings": True, "scale_emb": 1, "scale_depth": 1, "dim_model_base": 1},
        bias_keys=_ATTENTION_BIAS, embedding_scale="scale_emb", residual_scale="scale_depth",
        logit_scale="dim_model_base", gguf_interleaved=True, toolkit="1.1.1",
    ),
    Family(
        "minicpm3", "MiniCPM3", ("MiniCPM3ForCausalLM",), ("minicpm3",), toolkit="1.1.1", unpredicted=True,
        refused="its latent attention (MLA) is no feature of the simulated runtime's transformer",
    ),
    Family(
        "chatglm", "ChatGLM3", ("ChatGLMModel",), ("chatglm",), keys=_CHATGLM_KEYS, biases=QKV, toolkit="1.1.1",
        refused="its tokenizer is no tokenizer.json, and its special tokens are known to its own code only",
    ),
    Family(
        "qwen", "Qwen 1", ("QWenLMHeadModel",), ("qwen",), toolkit="1.1.1", unpredicted=True,
        refused="its tokenizer is known to its own code only",
    ),
    Family(
        "telechat", "TeleChat", ("TelechatForCausalLM",), ("telechat",), toolkit="1.1.1", in_gguf=False,
        unpredicted=True, refused="its fused layers and its tokenizer are known to its own code only",
    ),
    Family(
        "telechat2", "TeleChat2", ("TeleChat2ForCausalLM",), ("telechat",), in_gguf=False, unpredicted=True,
        refused="its fused layers and its tokenizer are known to its own code only",
    ),
)  # fmt: skip
LONGROPE_TOOLKIT = "1.2.2"  # the first that takes LongRoPE, of whatever family


def converted() -> str:
    """The families that are converted for the simulated runtime, for a sentence."""
    return ", ".join(family.title for family in FAMILIES if not family.refused)


def predicted() -> str:
    """The model types whose parameters are counted, for a sentence."""
    return ", ".join(kind for family in FAMILIES if not family.unpredicted for kind in family.model_types)


def taken(release: str, *, gguf: bool) -> list[str]:
    """What a release of rkllm-toolkit takes, by the names in GGUF files or by config.json's ``architectures``."""
    found = [f for f in FAMILIES if f.toolkit and version(f.toolkit) <= version(release) and (f.in_gguf or not gguf)]
    return [f.name for f in found] if gguf else [name for f in found for name in f.classes]


def of_class(name: Any) -> Family | None:
    """The family of one of config.json's ``architectures``."""
    return next((family for family in FAMILIES if name in (*family.classes, *family.text_of)), None)


def of_gguf(name: Any) -> Family | None:
    """The family of ``general.architecture``; of those that share one, the first."""
    return next((family for family in FAMILIES if family.name == name and family.in_gguf), None)


def of_model_type(kind: Any) -> Family | None:
    """The family of a config.json's ``model_type``."""
    return next((family for family in FAMILIES if kind in family.model_types), None)


def version(release: str) -> tuple[int, ...]:
    """A release of rkllm-toolkit, to be compared; () for what is none."""
    found = re.match(r"[0-9]{1,6}(\.[0-9]{1,6}){0,3}(?!\.?[0-9])", release)
    return tuple(int(part) for part in found[0].split(".")) if found else ()
