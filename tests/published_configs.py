"""config.json files as they are published, but for tokens and versions; and what they mean.

Each entry: what transformers or the authors' code makes of it, as fields of ModelConfig, the parameters that the
published model has, and where a copy of the file was found that says the same. LongRoPE's factors are of ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Published(NamedTuple):
    settings: Mapping[str, Any]
    means: Mapping[str, Any]
    parameters: int = 0  # 0: not known for sure
    found: str = ""  # "": nowhere; written from memory


def _of(architecture: str, model_type: str, sizes: tuple[int, ...], **more: Any) -> dict[str, Any]:
    """``sizes``: layers, hidden, intermediate, heads, KV heads, vocabulary, context."""
    keys = (
        "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads",
        "vocab_size", "max_position_embeddings",
    )  # fmt: skip
    return {
        "architectures": [architecture], "model_type": model_type, **dict(zip(keys, sizes, strict=True)),
        "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.02, "use_cache": True,
        "torch_dtype": "bfloat16", "transformers_version": "4.46.0", "hidden_act": "silu", "rms_norm_eps": 1e-06,
        **more,
    }  # fmt: skip


def _qwen(architecture: str, model_type: str, sizes: tuple[int, ...], **more: Any) -> dict[str, Any]:
    usual = {"max_window_layers": 28, "sliding_window": 32768, "use_sliding_window": False, "rope_theta": 1000000.0}
    return _of(architecture, model_type, sizes, **usual, **more)


MLC = "mlc-ai/mlc-llm, python/mlc_llm/model/model_preset.py"
SEVERAL = "tests and documents of several public repositories"
_QKV = frozenset({"attn_q", "attn_k", "attn_v"})
_LLAMA3 = {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
           "rope_type": "llama3"}  # fmt: skip
_PHI3: Mapping[str, Any] = {
    "attention_bias": False, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "auto_map": {"AutoConfig": "x.Phi3Config"},
    "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}  # fmt: skip
_SHORT, _LONG = [1.0 + i / 100 for i in range(48)], [1.0 + i for i in range(48)]
_GEMMA: Mapping[str, Any] = {
    "attention_bias": False, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh", "rope_theta": 10000.0,
    "hidden_activation": "gelu_pytorch_tanh",
}  # fmt: skip
_GEMMA3 = {
    "attention_bias": False, "attn_logit_softcapping": None, "cache_implementation": "hybrid",
    "final_logit_softcapping": None, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256, "rope_local_base_freq": 10000, "rope_scaling": None, "rope_theta": 1000000,
    "sliding_window": 512,
}  # fmt: skip
_MINICPM: Mapping[str, Any] = {
    "auto_map": {"AutoConfig": "x.MiniCPMConfig"}, "dim_model_base": 256, "rms_norm_eps": 1e-05, "scale_depth": 1.4,
    "scale_emb": 12,
}  # fmt: skip
_INTERN: Mapping[str, Any] = {
    "attn_implementation": "eager", "auto_map": {"AutoConfig": "x.InternLM2Config"}, "bias": False, "pad_token_id": 2,
    "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 2.0, "type": "dynamic"},
    "rope_theta": 1000000, "tie_word_embeddings": False,
}  # fmt: skip


def _every(n: int, layers: int, window: int) -> tuple[int, ...]:
    return tuple(0 if (i + 1) % n == 0 else window for i in range(layers))


PUBLISHED: dict[str, Published] = {
    "SmolLM2-135M": Published(
        _of("LlamaForCausalLM", "llama", (30, 576, 1536, 9, 3, 49152, 8192), attention_bias=False, mlp_bias=False,
            is_llama_config=True, pretraining_tp=1, rope_interleaved=False, rope_scaling=None, rope_theta=100000,
            rms_norm_eps=1e-05, tie_word_embeddings=True,
            **{"transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}}),
        {"head_dim": 64, "biases": frozenset(), "windows": (), "tied": True}, 134_515_008, MLC,
    ),
    "Llama-3.2-1B": Published(
        _of("LlamaForCausalLM", "llama", (16, 2048, 8192, 32, 8, 128256, 131072), attention_bias=False, mlp_bias=False,
            head_dim=64, pretraining_tp=1, rope_scaling=_LLAMA3, rope_theta=500000.0, tie_word_embeddings=True),
        {"head_dim": 64, "tied": True}, 1_235_814_400, MLC,
    ),
    "Mistral-7B-v0.1": Published(
        _of("MistralForCausalLM", "mistral", (32, 4096, 14336, 32, 8, 32000, 32768), rms_norm_eps=1e-05,
            rope_theta=10000.0, sliding_window=4096, tie_word_embeddings=False),
        {"windows": (4096,) * 32, "tied": False}, 7_241_732_096, MLC,
    ),
    "Mistral-7B-Instruct-v0.3": Published(
        _of("MistralForCausalLM", "mistral", (32, 4096, 14336, 32, 8, 32768, 32768), rms_norm_eps=1e-05,
            rope_theta=1000000.0, sliding_window=None, tie_word_embeddings=False),
        {"windows": ()}, 7_248_023_552, MLC,
    ),
    "Ministral-8B-Instruct-2410": Published(
        _of("MistralForCausalLM", "mistral", (36, 4096, 12288, 32, 8, 131072, 32768), head_dim=128,
            rms_norm_eps=1e-05, rope_theta=100000000.0, sliding_window=32768, tie_word_embeddings=False),
        {"windows": (), "head_dim": 128}, 8_019_808_256, SEVERAL,
    ),
    "Qwen2.5-0.5B": Published(
        _qwen("Qwen2ForCausalLM", "qwen2", (24, 896, 4864, 14, 2, 151936, 32768), tie_word_embeddings=True,
              use_mrope=False) | {"max_window_layers": 24},
        {"biases": _QKV, "head_norms": False, "windows": (), "tied": True}, 494_032_768, SEVERAL,
    ),
    "Qwen2.5-3B-Instruct": Published(  # its max_window_layers is beyond its layers
        _qwen("Qwen2ForCausalLM", "qwen2", (36, 2048, 11008, 16, 2, 151936, 32768), tie_word_embeddings=True)
        | {"max_window_layers": 70},
        {"biases": _QKV, "windows": (), "tied": True}, 3_085_938_688, MLC,
    ),
    "DeepSeek-R1-Distill-Qwen-1.5B": Published(
        _of("Qwen2ForCausalLM", "qwen2", (28, 1536, 8960, 12, 2, 151936, 131072), max_window_layers=21,
            rope_theta=10000, sliding_window=4096, tie_word_embeddings=False, use_mrope=False,
            use_sliding_window=False),
        {"biases": _QKV, "windows": (), "tied": False}, 1_777_088_000, "that of the 7B: " + SEVERAL,
    ),
    "Qwen2.5-7B-Instruct with YaRN": Published(  # as its card says to add it: the context stays
        _qwen("Qwen2ForCausalLM", "qwen2", (28, 3584, 18944, 28, 4, 152064, 32768), tie_word_embeddings=False,
              rope_scaling={"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}),
        {"biases": _QKV}, 7_615_616_512,
    ),
    "Qwen3-0.6B": Published(
        _qwen("Qwen3ForCausalLM", "qwen3", (28, 1024, 3072, 16, 8, 151936, 40960), attention_bias=False, head_dim=128,
              rope_scaling=None, tie_word_embeddings=True) | {"sliding_window": None},
        {"biases": frozenset(), "head_norms": True, "head_dim": 128}, 596_049_920, MLC,
    ),
    "Phi-3-mini-4k-instruct": Published(
        _of("Phi3ForCausalLM", "phi3", (32, 3072, 8192, 32, 32, 32064, 4096), **_PHI3, rope_scaling=None,
            sliding_window=2047),
        {"windows": (2047,) * 32, "head_dim": 96}, 3_821_079_552, MLC,
    ),
    "Phi-3.5-mini-instruct": Published(
        _of("Phi3ForCausalLM", "phi3", (32, 3072, 8192, 32, 32, 32064, 131072), **_PHI3, sliding_window=262144,
            rope_scaling={"long_factor": _LONG, "short_factor": _SHORT, "type": "longrope"}),
        {"windows": ()}, 3_821_079_552, MLC,
    ),
    "Phi-3-mini-128k-instruct": Published(
        _of("Phi3ForCausalLM", "phi3", (32, 3072, 8192, 32, 32, 32064, 131072), **_PHI3, sliding_window=262144,
            rope_scaling={"long_factor": _LONG, "short_factor": _SHORT, "type": "su"}),
        {"windows": ()}, 3_821_079_552,
    ),
    "Phi-4-mini-instruct": Published(
        {**_of("Phi3ForCausalLM", "phi3", (32, 3072, 8192, 24, 8, 200064, 131072), **_PHI3, full_attn_mod=1,
               interpolate_factor=1, lm_head_bias=False, mlp_bias=False, partial_rotary_factor=0.75,
               sliding_window=262144,
               rope_scaling={"long_factor": _LONG, "short_factor": _SHORT, "type": "longrope"}),
         "tie_word_embeddings": True},
        {"head_dim": 128, "tied": True}, 3_836_021_760, MLC,
    ),
    "phi-2": Published(
        {k: v for k, v in _of(
            "PhiForCausalLM", "phi", (32, 2560, 10240, 32, 32, 51200, 2048), embd_pdrop=0.0, layer_norm_eps=1e-05,
            partial_rotary_factor=0.4, qk_layernorm=False, resid_pdrop=0.1, rope_scaling=None, rope_theta=10000.0,
            tie_word_embeddings=False).items() if k != "rms_norm_eps"} | {"hidden_act": "gelu_new"},
        {"layer_norm": True, "parallel": True, "gated": False, "activation": "gelu_tanh", "head_dim": 80},
        2_779_683_840, SEVERAL,
    ),
    "gemma-2b": Published(
        {**_of("GemmaForCausalLM", "gemma", (18, 2048, 16384, 8, 1, 256000, 8192)), **_GEMMA,
         "hidden_act": "gelu", "hidden_activation": None, "rope_scaling": None},
        {"activation": "gelu_tanh", "embedding_scale": 2048**0.5, "head_dim": 256, "tied": True}, 2_506_172_416, MLC,
    ),
    "gemma-2-2b-it": Published(
        {**_of("Gemma2ForCausalLM", "gemma2", (26, 2304, 9216, 8, 4, 256000, 8192)), **_GEMMA,
         "attn_logit_softcapping": 50.0, "cache_implementation": "hybrid", "final_logit_softcapping": 30.0,
         "query_pre_attn_scalar": 256, "sliding_window": 4096},
        {"attention_soft_cap": 50.0, "logit_soft_cap": 30.0, "windows": _every(2, 26, 4096), "post_norms": True,
         "attention_scale": None}, 2_614_341_888, MLC,
    ),
    "gemma-2-2b-jpn-it": Published(  # a 2B whose queries are scaled as those of no other
        {**_of("Gemma2ForCausalLM", "gemma2", (26, 2304, 9216, 8, 4, 256000, 8192)), **_GEMMA, "dtype": "bfloat16",
         "attn_logit_softcapping": 50.0, "cache_implementation": "hybrid", "final_logit_softcapping": 30.0,
         "query_pre_attn_scalar": 224, "sliding_window": 4096},
        {"attention_scale": 224**-0.5, "windows": _every(2, 26, 4096)}, 2_614_341_888, MLC,
    ),
    "gemma-2-27b-it": Published(
        {**_of("Gemma2ForCausalLM", "gemma2", (46, 4608, 36864, 32, 16, 256000, 8192)), **_GEMMA, "head_dim": 128,
         "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 144,
         "sliding_window": 4096, "sliding_window_size": 4096},
        {"attention_scale": 144**-0.5, "head_dim": 128}, 27_227_128_320, MLC,
    ),
    "gemma-3-1b-it": Published(
        {**_of("Gemma3ForCausalLM", "gemma3_text", (26, 1152, 6912, 4, 1, 262144, 32768)), **_GEMMA3,
         "sliding_window_pattern": 6},
        {"windows": _every(6, 26, 512), "head_norms": True, "post_norms": True, "logit_soft_cap": None},
        999_885_952, MLC,
    ),
    "gemma-3-270m-it": Published(
        {**_of("Gemma3ForCausalLM", "gemma3_text", (18, 640, 2048, 4, 1, 262144, 32768)), **_GEMMA3,
         "_sliding_window_pattern": 6, "use_bidirectional_attention": False,
         "layer_types": ["full_attention" if (i + 1) % 6 == 0 else "sliding_attention" for i in range(18)]},
        {"windows": _every(6, 18, 512)}, 268_098_176, "safety-research/circuit-tracer, tests",
    ),
    "gemma-3-4b-it": Published(
        {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "boi_token_index": 255999,
         "eoi_token_index": 256000, "image_token_index": 262144, "mm_tokens_per_image": 256,
         "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
         "text_config": {
             "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
             "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
         }},
        {"windows": _every(6, 34, 1024), "heads": 8, "kv_heads": 4, "vocab_size": 262208, "head_dim": 256},
        3_880_263_168, SEVERAL,  # parameters of its language model
    ),
    "SmolLM3-3B": Published(
        _of("SmolLM3ForCausalLM", "smollm3", (36, 2048, 11008, 16, 4, 128256, 65536), attention_bias=False,
            layer_types=["full_attention"] * 36, max_window_layers=28, mlp_bias=False, no_rope_layer_interval=4,
            no_rope_layers=[1, 1, 1, 0] * 9, pretraining_tp=2, rope_scaling=None, rope_theta=5000000.0,
            sliding_window=None, use_sliding_window=False),
        {"tied": True, "windows": ()}, 3_075_098_624, SEVERAL,
    ),
    "internlm2_5-1_8b-chat": Published(
        _of("InternLM2ForCausalLM", "internlm2", (24, 2048, 8192, 16, 8, 92544, 32768), **_INTERN),
        {"biases": frozenset(), "context_length": 32768}, 1_889_110_016,
    ),
    "internlm2_5-7b-chat": Published(
        _of("InternLM2ForCausalLM", "internlm2", (32, 4096, 14336, 32, 8, 92544, 32768), **_INTERN),
        {"biases": frozenset(), "context_length": 32768}, 0, MLC,
    ),
    "MiniCPM-2B-sft-bf16": Published(
        _of("MiniCPMForCausalLM", "minicpm", (40, 2304, 5760, 36, 36, 122753, 4096), **_MINICPM,
            tie_word_embeddings=True),
        {"embedding_scale": 12, "residual_scale": 1.4 / 40**0.5, "logit_scale": 256 / 2304, "tied": True},
        2_724_880_896, MLC,
    ),
    "MiniCPM-2B-128k": Published(
        _of("MiniCPMForCausalLM", "minicpm", (40, 2304, 5760, 36, 36, 122760, 65536), **_MINICPM, max_length=131072,
            rope_scaling={"type": "dynamic", "factor": 4.0}, rope_theta=1000000.0, tie_word_embeddings=False),
        {"tied": False, "context_length": 65536}, 0, MLC,
    ),
    "MiniCPM-1B-sft-bf16": Published(
        _of("MiniCPMForCausalLM", "minicpm", (52, 1536, 3840, 24, 8, 73440, 4096), **_MINICPM),
        {"embedding_scale": 12, "residual_scale": 1.4 / 52**0.5, "logit_scale": 256 / 1536},
    ),
    "MiniCPM4-8B": Published(
        _of("MiniCPMForCausalLM", "minicpm", (32, 4096, 16384, 32, 2, 73448, 32768),
            **{**_MINICPM, "rms_norm_eps": 1e-06}, mup_denominator=32, tie_word_embeddings=False, rope_theta=10000.0,
            sparse_config={"block_size": 64, "dense_len": 8192, "init_blocks": 1, "kernel_size": 32, "topk": 64},
            rope_scaling={"rope_type": "longrope", "original_max_position_embeddings": 32768,
                          "long_factor": _LONG + _LONG[:16], "short_factor": _SHORT + _SHORT[:16]}),
        {"residual_scale": 1.4 / 32**0.5, "tied": False}, 0, "its sizes and scales: " + SEVERAL,
    ),
}  # fmt: skip
