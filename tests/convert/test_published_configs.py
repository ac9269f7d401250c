"""config.json files as their authors publish and mean them; and mutated ones: read, or refused in a sentence."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rk3588 import shape
from rk3588.errors import CheckpointError, RkError
from rkconvert.architectures import config_json
from rkconvert.architectures.model import BASE_ROPE, LOCAL_ROPE, NO_ROPE, ModelConfig
from tests.published_configs import PUBLISHED


def read(settings: Any) -> ModelConfig:
    text, _ = config_json.text_part(settings, "config.json")
    return config_json.read_config(text, "config.json")


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_configuration(name: str) -> None:
    settings, means, parameters, _ = PUBLISHED[name]
    config = read(settings)
    assert {key: getattr(config, key) for key in means} == means
    tensors = sum(math.prod(size) for size in config.tensors().values())
    found = shape.from_config(dict(settings), Path("m/config.json"))
    assert tensors == found.total_params == config.shape("m").total_params
    assert parameters in (0, tensors)


def rope(name: str) -> Any:
    return read(PUBLISHED[name].settings).rope


def test_rope_of_published_configurations() -> None:
    llama, yarn = rope("Llama-3.2-1B"), rope("Qwen2.5-7B-Instruct with YaRN")
    assert llama.theta == 500000 and llama.scaling.factors[0] == 1 and llama.scaling.factors[-1] == 32
    assert yarn.scaling.factors[0] == 1 and yarn.scaling.factors[-1] == 4
    assert yarn.scaling.attention_factor == pytest.approx(0.1 * math.log(4) + 1)
    assert rope("phi-2").dims == 32 and rope("Phi-4-mini-instruct").dims == 96
    for name in ("Phi-3.5-mini-instruct", "Phi-3-mini-128k-instruct", "Phi-4-mini-instruct"):
        scaling = rope(name).scaling
        assert scaling.short_context == 4096 and (scaling.factors[1], scaling.long_factors[1]) == (1.01, 2.0)
        assert scaling.attention_factor == pytest.approx(math.sqrt(1 + math.log(32) / math.log(4096)))
    for name in ("gemma-3-1b-it", "gemma-3-270m-it", "gemma-3-4b-it"):
        gemma = rope(name)
        assert (gemma.theta, gemma.local_theta) == (1e6, 1e4)
        assert gemma.layers[:6] == (LOCAL_ROPE,) * 5 + (BASE_ROPE,)
    assert rope("gemma-3-4b-it").scaling.factors == (8.0,) * 128 and rope("gemma-3-1b-it").scaling.factors == ()
    assert rope("SmolLM3-3B").layers == ((BASE_ROPE,) * 3 + (NO_ROPE,)) * 9
    assert rope("internlm2_5-1_8b-chat").scaling.factors == ()


def test_a_bias_of_a_tied_lm_head_is_not_passed_over() -> None:
    with pytest.raises(CheckpointError, match="lm_head is the embedding and has a bias as well"):
        read({**PUBLISHED["phi-2"].settings, "tie_word_embeddings": True})


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 2**40), st.floats(), st.text(max_size=8),
    st.sampled_from(["silu", "gelu", "linear", "dynamic", "longrope", "yarn", "sliding_attention", "full_attention"]),
    st.lists(st.one_of(st.integers(0, 3), st.floats(0, 9), st.text(max_size=3), st.none()), max_size=4),
    st.dictionaries(st.sampled_from(["rope_type", "type", "factor", "rope_theta", "x"]), st.one_of(
        st.floats(), st.integers(), st.sampled_from(["linear", "yarn", "llama3", "dynamic", "default"])), max_size=4),
)  # fmt: skip
ALL_KEYS = sorted({key for one in PUBLISHED.values() for key in one.settings} | {"rope_parameters", "no_rope_layers"})
# What says nothing about the logits: changed, these may give the same model.
BESIDE = {
    "architectures", "model_type", "auto_map", "torch_dtype", "transformers_version", "initializer_range", "use_cache",
    "bos_token_id", "eos_token_id", "pad_token_id", "pretraining_tp", "attn_implementation", "cache_implementation",
    "is_llama_config", "transformers.js_config", "mup_denominator", "sparse_config", "max_window_layers",
    "attention_dropout", "embd_pdrop", "resid_pdrop", "sliding_window", "max_length", "dtype",
}  # fmt: skip


@given(st.sampled_from(sorted(PUBLISHED)), st.dictionaries(st.sampled_from(ALL_KEYS), VALUES, min_size=1, max_size=3))
def test_any_configuration_is_read_or_refused_in_a_sentence(name: str, changes: dict[str, Any]) -> None:
    settings = {**copy.deepcopy(dict(PUBLISHED[name].settings)), **changes}
    for reading in (read, lambda value: shape.from_config(value, Path("m/config.json"))):
        try:
            reading(settings)
        except RkError as error:
            assert "config.json" in str(error) and "\n" not in str(error)


@given(st.sampled_from(sorted(PUBLISHED)), st.data())
def test_a_changed_setting_changes_the_model_or_is_refused(name: str, data: st.DataObject) -> None:
    """What says how the model computes is never passed over."""
    settings = dict(PUBLISHED[name].settings)
    key = data.draw(st.sampled_from(sorted(set(settings) - BESIDE - {"vision_config", "text_config"})))
    if key.endswith(("_token_index", "per_image")) or (key == "original_max_position_embeddings"):
        return
    value = settings[key]
    plain = read(settings)
    changed: Any = data.draw(VALUES if value is None or isinstance(value, (list, dict)) else st.just(other(value)))
    if changed == value or changed is None:
        return
    try:
        found = read({**settings, key: changed})
    except CheckpointError:
        return
    assert found != plain or neutral(name, key, changed), (key, changed)


def other(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return "gelu_new" if value == "silu" else "silu"
    return value * 2


def neutral(name: str, key: str, changed: Any) -> bool:
    """Settings that another one has decided already."""
    settings = PUBLISHED[name].settings
    return (
        (key == "hidden_act" and bool(settings.get("hidden_activation") or "hidden_activation" in settings))
        or (key == "no_rope_layer_interval" and "no_rope_layers" in settings)
        or (key in ("sliding_window_pattern", "_sliding_window_pattern") and "layer_types" in settings)
        or (key in ("rope_scaling", "rope_parameters") and unscaled(changed))
        # A window as long as the context, or of layers that are not there; only these families have the switch.
        or (key == "use_sliding_window" and settings["model_type"] in ("qwen2", "qwen3", "smollm3"))
        or changed in (0, False, "", [], {})
    )


def unscaled(scaling: Any) -> bool:
    """Dynamic NTK scales nothing up to the original context."""
    kind = scaling.get("rope_type") or scaling.get("type") if scaling else None
    return kind in (None, "default", "dynamic")
