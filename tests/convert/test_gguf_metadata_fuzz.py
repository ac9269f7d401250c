"""Mutated GGUF metadata of every family: a model or one sentence, and no value passed over."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rk3588.errors import CheckpointError
from rk3588.families import FAMILIES
from rkconvert.architectures import gguf_metadata
from rkconvert.architectures.model import ModelConfig

NAMES = sorted({family.name for family in FAMILIES if not family.refused})
SIZES: dict[str, Any] = {
    "block_count": 4, "context_length": 512, "embedding_length": 64, "feed_forward_length": 112,
    "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 16, "attention.value_length": 16,
    "rope.dimension_count": 16, "rope.freq_base": 10000.0,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "phi2": {"attention.layer_norm_epsilon": 1e-5},
    "gemma2": {"attention.sliding_window": 64, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    "gemma3": {"attention.sliding_window": 64, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
    "minicpm": {"embedding_scale": 12.0, "residual_scale": 0.7, "logit_scale": 4.0},
    "qwen2": {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 128},
}  # fmt: skip
OTHERS = (
    "attention.scale", "attention.clamp_kqv", "attention.causal", "use_parallel_residual", "expert_count", "future",
    "rope.scaling.attn_factor", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_ext_factor",
    "attention.sliding_window_pattern", "rope.scale_linear", "attention.temperature_scale", "vocab_size",
)  # fmt: skip
KEYS = sorted({*SIZES, *OTHERS, *(key for own in OWN.values() for key in own)})
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 2**40), st.floats(), st.text(max_size=6),
    st.sampled_from(["linear", "yarn", "longrope", "none", "dynamic"]),
    st.lists(st.one_of(st.integers(-1, 9), st.floats(), st.text(max_size=2)), max_size=5),
)  # fmt: skip


def metadata(name: str) -> dict[str, Any]:
    settings = {**SIZES, "attention.layer_norm_rms_epsilon": 1e-5, **OWN.get(name, {})}
    return {"general.architecture": name, **{f"{name}.{key}": value for key, value in settings.items()}}


def read(values: dict[str, Any]) -> ModelConfig:
    return gguf_metadata.read_config(values, "m.gguf", vocab_size=384, tied=values["general.architecture"] != "phi2")


@pytest.mark.parametrize("name", NAMES)
def test_each_family_is_read(name: str) -> None:
    assert read(metadata(name)).family == name


@given(st.sampled_from(NAMES), st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=3))
def test_any_metadata_is_read_or_refused_in_a_sentence(name: str, changes: dict[str, Any]) -> None:
    values = metadata(name) | {f"{name}.{key}": value for key, value in changes.items()}
    try:
        read(values)
    except CheckpointError as error:
        assert str(error).startswith("m.gguf") and "\n" not in str(error)


# What says nothing of how a model computes, or that another key has decided.
BESIDE = {"vocab_size", "attention.layer_norm_rms_epsilon", "attention.sliding_window_pattern"}


@given(st.sampled_from(NAMES), st.sampled_from(KEYS), st.sampled_from([3, 0.375, "other"]))
def test_a_changed_value_changes_the_model_or_is_refused(name: str, key: str, value: Any) -> None:
    if key in BESIDE or "yarn_" in key:
        return
    if key == "attention.layer_norm_epsilon" and name != "phi2":  # of the norm that the family does not have
        return
    if key == "rope.scale_linear" and "rope.scaling.factor" in OWN.get(name, {}):  # the older name of the same
        return
    if key == "rope.scaling.original_context_length" and name != "qwen2":  # of YaRN and LongRoPE alone
        return
    plain = metadata(name)
    try:
        found = read({**plain, f"{name}.{key}": value})
    except CheckpointError:
        return
    assert found != read(plain), (name, key, value)
