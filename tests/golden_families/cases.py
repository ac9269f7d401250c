"""The tiny random models of every family that transformers knows, and what their golden logits are of.

Without torch: the script that writes the files and the test that reads them both start from here. Windows and original
contexts are shorter than the prompt, so that each feature shows in the logits.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]
FOLDER = Path(__file__).resolve().parent
VOCABULARY = 384
TOKENS = 40

_SIZES = {
    "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": VOCABULARY, "max_position_embeddings": 512,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 4.0}
_LONG = {
    "type": "longrope",
    "short_factor": [1.0 + 0.1 * i for i in range(8)],
    "long_factor": [1.5 + 0.4 * i for i in range(8)],
}


def case(architecture: str, model_type: str, **more: Any) -> dict[str, Any]:
    settings = {"architectures": [architecture], "model_type": model_type, **_SIZES, **more}
    return {key: value for key, value in settings.items() if value != "none"}


CASES: Mapping[str, Mapping[str, Any]] = {
    "llama_biases": case("LlamaForCausalLM", "llama", attention_bias=True, mlp_bias=True),
    "mistral": case("MistralForCausalLM", "mistral", sliding_window=8),
    "ministral": case(
        "MinistralForCausalLM", "ministral", sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "qwen2": case("Qwen2ForCausalLM", "qwen2", head_dim="none", tie_word_embeddings=True, rope_theta=1e6),
    "qwen2_yarn": case("Qwen2ForCausalLM", "qwen2", head_dim="none", rope_scaling=_YARN),
    "qwen2_window": case(
        "Qwen2ForCausalLM", "qwen2", head_dim="none", use_sliding_window=True, sliding_window=8, max_window_layers=1
    ),
    "qwen3": case("Qwen3ForCausalLM", "qwen3", head_dim=32, tie_word_embeddings=True, rope_theta=1e6),
    "phi3": case("Phi3ForCausalLM", "phi3", head_dim="none", sliding_window=8),
    "phi3_longrope": case(
        "Phi3ForCausalLM", "phi3", head_dim="none", rope_scaling=_LONG, original_max_position_embeddings=16,
        max_position_embeddings=128, sliding_window=None,
    ),
    "phi4_mini": case(
        "Phi3ForCausalLM", "phi3", head_dim="none", partial_rotary_factor=0.75, tie_word_embeddings=True,
        sliding_window=None,
    ),
    "phi2": case("PhiForCausalLM", "phi", head_dim="none", num_key_value_heads=4, partial_rotary_factor=0.5),
    "gemma": case("GemmaForCausalLM", "gemma", head_dim=32),
    "gemma2": case("Gemma2ForCausalLM", "gemma2", head_dim=32, sliding_window=8, query_pre_attn_scalar=24,
                    attn_logit_softcapping=4.0, final_logit_softcapping=6.0),
    "gemma3": case(
        "Gemma3ForCausalLM", "gemma3_text", head_dim=32, sliding_window=8, sliding_window_pattern=3,
        query_pre_attn_scalar=24, rope_theta=1e5, rope_local_base_freq=1000.0,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
    ),
    "smollm3": case(
        "SmolLM3ForCausalLM", "smollm3", head_dim="none", num_hidden_layers=4, no_rope_layer_interval=4,
        use_sliding_window=False,
    ),
}  # fmt: skip


def ids(count: int = TOKENS) -> list[int]:
    """Tokens by a rule."""
    return [(7 + 31 * i + 5 * i * i) % VOCABULARY for i in range(count)]


def weight(name: str, shape: tuple[int, ...], plus_one: bool) -> npt.NDArray[np.float32]:
    """What a tensor of a tiny model holds; the same on every machine. ``plus_one``: its gains are added to 1.

    From PCG64's raw bits, which NumPy keeps stable, and a seed made of the tensor's name.
    """
    bits = np.random.PCG64([9, zlib.crc32(name.encode())]).random_raw(int(np.prod(shape)))
    total = sum((bits >> np.uint64(16 * i)) & np.uint64(0xFFFF) for i in range(4))
    unit = (np.asarray(total, np.float64) - 2 * 65535) / 37837
    if len(shape) == 1:
        value = 0.2 * unit + (name.endswith("norm.weight") and not plus_one)
    elif "embed" in name:
        value = 0.25 * unit
    else:
        value = unit * (2 if "lm_head" in name else 1.2) / np.sqrt(shape[-1])
    return np.asarray(np.rint(value * 2**12) / 2**12, np.float32).reshape(shape)


def weights(name: str) -> dict[str, npt.NDArray[np.float32]]:
    """Every tensor of a case, by its name in the checkpoint."""
    shapes = json.loads((FOLDER / "shapes.json").read_text(encoding="utf-8"))[name]
    plus_one = str(CASES[name]["model_type"]).startswith("gemma")
    return {tensor: weight(tensor, tuple(shape), plus_one) for tensor, shape in shapes.items()}


def load(name: str) -> Arrays:
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)
