"""The tiny models of every family as GGUF files, as llama.cpp's convert_hf_to_gguf.py writes them.

Names come from the gguf package's own map. What that converter does beside renaming is done here per family: rows of Q
and K interleaved, 1 added to Gemma's gains, InternLM2's fused layer split, settings under the family's own keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from tests import models
from tests.golden_families import cases

Array = npt.NDArray[np.float32]
_INTERLEAVED = ("llama", "smollm3", "minicpm", "internlm2")
_WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1, "head_dim": "none"}
# Families of remote code, and models wide enough for K-quants: without golden files of transformers.
_REMOTE: Mapping[str, Mapping[str, Any]] = {
    "internlm2": cases.case(
        "InternLM2ForCausalLM", "internlm2", head_dim="none", bias=False, rms_norm_eps=1e-5, hidden_act="silu",
        rope_theta=1e6, rope_scaling={"type": "dynamic", "factor": 2.0},
    ),
    "minicpm": cases.case(
        "MiniCPMForCausalLM", "minicpm", head_dim="none", scale_emb=3, scale_depth=1.4, dim_model_base=32,
        rms_norm_eps=1e-5, hidden_act="silu", tie_word_embeddings=True,
    ),
    "qwen2_wide": cases.case("Qwen2ForCausalLM", "qwen2", **_WIDE),
    "phi3_wide": cases.case("Phi3ForCausalLM", "phi3", sliding_window=None, **_WIDE),
}  # fmt: skip
CASES: Mapping[str, Mapping[str, Any]] = {**cases.CASES, **_REMOTE}
# What a file cannot say of a case, with what is taken instead, as llama.cpp does.
UNSAID: Mapping[str, Mapping[str, Any]] = {
    "mistral": {"sliding_window": None},
    "ministral": {"sliding_window": None, "layer_types": None},
    "qwen2_window": {"use_sliding_window": False},
    "gemma2": {"query_pre_attn_scalar": 32},
    "gemma3": {"query_pre_attn_scalar": 32, "rope_local_base_freq": 10000.0},
}


def weights(name: str) -> dict[str, Array]:
    """Every tensor of a case, by its name in the Hugging Face checkpoint."""
    if name not in _REMOTE:
        return cases.weights(name)
    return {tensor: cases.weight(tensor, shape, False) for tensor, shape in _remote_shapes(name).items()}


def _remote_shapes(name: str) -> dict[str, tuple[int, ...]]:
    s = CASES[name]
    hidden, middle, kind = s["hidden_size"], s["intermediate_size"], s["model_type"]
    tiny = models.Tiny(
        layers=s["num_hidden_layers"], hidden=hidden, head_dim=hidden // 4, intermediate=middle,
        tied=s.get("tie_word_embeddings", False),
    )  # fmt: skip
    found: dict[str, tuple[int, ...]] = {}
    for tensor, shape in tiny.shapes().items():
        found[_renamed(tensor, _THEIRS.get(kind, {}))] = shape
        if kind == "qwen2" and tensor.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            found[tensor.replace("weight", "bias")] = shape[:1]
    for tensor in [tensor for tensor in found if "qkv" in tensor]:
        found[tensor] = (2 * hidden, hidden)  # 4 heads of queries, 2 of keys, 2 of values
    for tensor in [tensor for tensor in found if "gate_up" in tensor]:
        found[tensor] = (2 * middle, hidden)
    return found


_THEIRS = {
    "internlm2": {
        "input_layernorm": "attention_norm", "self_attn.o_proj": "attention.wo", "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3", "mlp.down_proj": "feed_forward.w2",
        "model.embed_tokens": "model.tok_embeddings", "lm_head": "output",
        **{f"self_attn.{kind}_proj": "attention.wqkv" for kind in "qkv"},
    },
    "phi3": {
        **{f"self_attn.{kind}_proj": "self_attn.qkv_proj" for kind in "qkv"},
        "mlp.gate_proj": "mlp.gate_up_proj", "mlp.up_proj": "mlp.gate_up_proj",
    },
}  # fmt: skip


def _renamed(tensor: str, names: Mapping[str, str]) -> str:
    for ours, theirs in names.items():
        tensor = tensor.replace(ours, theirs)
    return tensor


def architecture(name: str) -> str:
    """llama.cpp's name of a case's family."""
    kind = str(CASES[name]["model_type"])
    return {"mistral": "llama", "ministral": "llama", "phi": "phi2", "gemma3_text": "gemma3"}.get(kind, kind)


def write(
    name: str,
    path: Path,
    *,
    change: Callable[[dict[str, Any]], None] | None = None,
    tensor: Callable[[str, Array], tuple[Any, Any]] | None = None,
    fused: bool = False,
    layers: int = 0,
    **options: Any,
) -> Path:
    """``change`` is given the metadata, ``tensor`` gives a weight's bytes and type where they are to be others,
    ``fused`` lays Q, K and V into one tensor as older converters did for Phi-2, ``layers``, where above 0, repeats the
    case's to so many; ``options`` are gguf's for parts."""
    family, settings = architecture(name), CASES[name]
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, family, **options)
    _add_settings(writer, family, settings)
    models.add_vocabulary(writer, path.parent, settings["vocab_size"])
    if change:
        change(writer.kv_data[0])
    for their, value in repeated(tensors(name, fused=fused), settings["num_hidden_layers"], layers).items():
        kind = gguf.GGMLQuantizationType.F32
        data, kind = tensor(their, value) if tensor else (value, kind)
        writer.add_tensor(their, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def repeated(found: Mapping[str, Array], had: int, layers: int) -> Mapping[str, Array]:
    """The same with the tensors of ``had`` layers over and over, for ``layers`` of them; 0: as they are."""
    if not layers:
        return found
    blocks = {f"blk.{i}.{n.split('.', 2)[2]}": found[n] for i in range(layers) for n in found if f"blk.{i % had}." in n}
    return {name: value for name, value in found.items() if not name.startswith("blk.")} | blocks


def tensors(name: str, *, fused: bool = False) -> dict[str, Array]:
    """A case's tensors by GGUF name."""
    family, settings = architecture(name), CASES[name]
    arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == family)
    names = gguf.get_tensor_name_map(arch, settings["num_hidden_layers"])
    found: dict[str, Array] = dict(_rope_tensors(settings))
    for theirs, value in weights(name).items():
        for tensor, part in _split(theirs, value, settings):
            module, _, ending = tensor.rpartition(".")
            ours = names.get_name(module)
            assert ours, f"gguf knows no name for {tensor} of {family}"
            if family in _INTERLEAVED and ours.endswith(("attn_q", "attn_k")):
                heads = settings["num_attention_heads" if ours.endswith("q") else "num_key_value_heads"]
                part = models.permute(part.reshape(len(part), -1), heads).reshape(part.shape)
            if family.startswith("gemma") and tensor.endswith("norm.weight"):
                part = part + 1
            found[f"{ours}.{ending}"] = part
    return _with_qkv(found) if fused else found


def _split(name: str, value: Array, settings: Mapping[str, Any]) -> list[tuple[str, Array]]:
    """InternLM2's fused layer as the three that it is: by KV head, each with its queries, its key and its value."""
    if not name.endswith("attention.wqkv.weight"):
        return [(name, value)]
    heads, kv_heads = settings["num_attention_heads"], settings["num_key_value_heads"]
    grouped = value.reshape(kv_heads, heads // kv_heads + 2, -1, value.shape[-1])
    q, k, v = grouped[:, :-2], grouped[:, -2], grouped[:, -1]
    layer = name.removesuffix("attention.wqkv.weight")
    return [(f"{layer}attention.w{n}.weight", p.reshape(-1, value.shape[-1])) for n, p in zip("qkv", (q, k, v))]


def _with_qkv(found: Mapping[str, Array]) -> dict[str, Array]:
    fused: dict[str, Array] = {}
    for name, value in found.items():
        if ".attn_q." in name:
            others = [found[name.replace("attn_q", kind)] for kind in ("attn_k", "attn_v")]
            fused[name.replace("attn_q", "attn_qkv")] = np.concatenate([value, *others])
        elif ".attn_k." not in name and ".attn_v." not in name:
            fused[name] = value
    return fused


def _rope_tensors(settings: Mapping[str, Any]) -> dict[str, Array]:
    scaling = settings.get("rope_scaling") or {}
    found = {f"rope_factors_{key}.weight": scaling.get(f"{key}_factor") for key in ("long", "short")}
    return {name: np.asarray(values, np.float32) for name, values in found.items() if values}


def _add_settings(writer: Any, family: str, settings: Mapping[str, Any]) -> None:
    hidden, heads = settings["hidden_size"], settings["num_attention_heads"]
    head_dim = settings.get("head_dim", hidden // heads)
    eps = settings.get("rms_norm_eps", 1e-5 if family.startswith("phi") else 1e-6)
    writer.add_name("Tiny")
    writer.add_block_count(settings["num_hidden_layers"])
    writer.add_context_length(settings["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(settings["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(settings["num_key_value_heads"])
    writer.add_layer_norm_eps(eps) if family == "phi2" else writer.add_layer_norm_rms_eps(eps)
    writer.add_vocab_size(settings["vocab_size"])
    if "head_dim" in settings:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if family.startswith("phi"):
        writer.add_rope_dimension_count(int(settings.get("partial_rotary_factor", 1.0) * head_dim))
    elif family in ("llama", "smollm3"):
        writer.add_rope_dimension_count(head_dim)
    theta = {"smollm3": 2e6}.get(family, settings.get("rope_theta", 10000.0))
    if family not in ("phi2", "gemma", "gemma2"):
        writer.add_rope_freq_base(theta)
    _add_rope_scaling(writer, settings, family)
    if family in ("phi3", "gemma2", "gemma3"):
        writer.add_sliding_window(settings["sliding_window"] or 0)
    if family == "gemma3" and settings["sliding_window_pattern"] != 6:
        writer.add_sliding_window_pattern(settings["sliding_window_pattern"])
    if family == "gemma2":
        writer.add_attn_logit_softcapping(settings["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(settings["final_logit_softcapping"])
    if family == "minicpm":
        writer.add_embedding_scale(float(settings["scale_emb"]))
        writer.add_residual_scale(settings["scale_depth"] / math.sqrt(settings["num_hidden_layers"]))
        writer.add_logit_scale(hidden / settings["dim_model_base"])


def _add_rope_scaling(writer: Any, settings: Mapping[str, Any], family: str) -> None:
    scaling = settings.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(scaling["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_beta_fast(scaling["beta_fast"])
    if family == "phi3":
        original = settings.get("original_max_position_embeddings", settings["max_position_embeddings"])
        writer.add_rope_scaling_orig_ctx_len(original)
        if kind == "longrope":
            factor = settings["max_position_embeddings"] / original
            writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
            writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(factor) / math.log(original)))
