"""Golden parameter counts: `param_counts.py` writes tests/golden/param_counts.json (`--check` compares).

Needs torch and transformers, but neither weights nor network: models are built on torch's meta device. InternLM2 and
ChatGLM3 are code of their own repositories, which transformers does not carry: theirs are counts that users report of
loaded checkpoints, ChatGLM3-6B's as num_parameters(), InternLM2's of InternLM2.5-1.8B, taken to have the same shape.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

OUT = Path(__file__).resolve().parent / "golden" / "param_counts.json"


def _llama(layers: int, hidden: int, intermediate: int, heads: int, kv_heads: int, vocab: int, **more: Any) -> Any:
    shape = {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
    }
    return {"model_type": "llama", **shape, **more}


CONFIGS: dict[str, dict[str, Any]] = {
    "TinyLlama-1.1B": _llama(22, 2048, 5632, 32, 4, 32000),
    "Llama-3-8B": _llama(32, 4096, 14336, 32, 8, 128256),
    "Llama-3.2-1B": _llama(16, 2048, 8192, 32, 8, 128256, head_dim=64, tie_word_embeddings=True),
    "SmolLM2-135M": _llama(30, 576, 1536, 9, 3, 49152, tie_word_embeddings=True),
    "llama with biases": _llama(2, 64, 160, 4, 2, 100, attention_bias=True, mlp_bias=True, head_dim=24),
    "Mistral-7B": _llama(32, 4096, 14336, 32, 8, 32768, model_type="mistral"),
    "Qwen2-0.5B": _llama(24, 896, 4864, 14, 2, 151936, model_type="qwen2", tie_word_embeddings=True),
    "Qwen2-1.5B": _llama(28, 1536, 8960, 12, 2, 151936, model_type="qwen2", tie_word_embeddings=True),
    "Qwen2-7B": _llama(28, 3584, 18944, 28, 4, 152064, model_type="qwen2"),
    "Qwen3-0.6B": _llama(28, 1024, 3072, 16, 8, 151936, model_type="qwen3", head_dim=128, tie_word_embeddings=True),
    "Phi-3-mini": _llama(32, 3072, 8192, 32, 32, 32064, model_type="phi3"),
    "Gemma-2B": _llama(18, 2048, 16384, 8, 1, 256000, model_type="gemma", head_dim=256),
    "Gemma-2-2B": _llama(26, 2304, 9216, 8, 4, 256000, model_type="gemma2", head_dim=256),
    "Phi-2": _llama(32, 2560, 10240, 32, 32, 51200, model_type="phi"),
    "phi with fewer KV heads, tied": _llama(2, 64, 160, 4, 2, 100, model_type="phi", tie_word_embeddings=True),
    "Gemma-3-1B": _llama(26, 1152, 6912, 4, 1, 262144, model_type="gemma3_text", head_dim=256),
    "Gemma with biases": _llama(2, 64, 160, 4, 2, 100, model_type="gemma", head_dim=24, attention_bias=True),
    "SmolLM3-3B": _llama(36, 2048, 11008, 16, 4, 128256, model_type="smollm3"),
    "smollm3 with biases": _llama(
        2, 64, 160, 4, 2, 100, pad_token_id=0, model_type="smollm3", attention_bias=True, mlp_bias=True
    ),
    "Ministral-8B": _llama(36, 4096, 12288, 32, 8, 131072, model_type="ministral", head_dim=128),
    "Qwen3 with biases": _llama(2, 64, 160, 4, 2, 100, model_type="qwen3", head_dim=24, attention_bias=True),
    "Gemma-2-9B": _llama(42, 3584, 14336, 16, 8, 256000, model_type="gemma2", head_dim=256),
}
REPORTED: dict[str, tuple[dict[str, Any], int]] = {
    "InternLM2-1.8B": (
        _llama(24, 2048, 8192, 16, 8, 92544, model_type="internlm2", tie_word_embeddings=False, bias=False),
        1_889_110_016,
    ),
    "ChatGLM3-6B": (
        {
            "model_type": "chatglm", "num_layers": 28, "hidden_size": 4096, "ffn_hidden_size": 13696,
            "num_attention_heads": 32, "multi_query_group_num": 2, "kv_channels": 128, "padded_vocab_size": 65024,
            "seq_length": 8192, "add_qkv_bias": True, "tie_word_embeddings": False,
        },
        6_243_584_000,
    ),
}  # fmt: skip


def count(config: dict[str, Any]) -> int:
    """What transformers says of a model with this config."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    values = dict(config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(values.pop("model_type"), **values))
    return int(model.num_parameters())


def golden() -> list[dict[str, Any]]:
    """All counts, each with its config and where the count is from."""
    found = [
        {"name": name, "source": "transformers", "parameters": count(config), "config": config}
        for name, config in CONFIGS.items()
    ]
    for name, (config, parameters) in REPORTED.items():
        found.append({"name": name, "source": "reported", "parameters": parameters, "config": config})
    return found


def main(arguments: list[str]) -> int:
    text = "[\n" + ",\n".join(json.dumps(entry) for entry in golden()) + "\n]\n"
    if arguments == ["--check"]:
        same = OUT.read_text(encoding="utf-8") == text
        print(f"{OUT.name} is {'what transformers counts' if same else 'out of date: run this without --check'}")
        return 0 if same else 1
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
