"""What a header of ``model.sim.gguf`` may not say: each in one sentence, whatever its checksums are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rk3588 import hostlib
from rk3588.errors import SimError
from tests import artifacts
from tests.artifacts import Model
from tests.sim.test_numerics_features import CASES, NORMS, ids, logits

KINDS = gguf.GGUFValueType
# What is changed in a file of two blocks, by key, and the sentence. A pair is a value and its type.
KEYS: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "unknown feature": ({"rksim.attention.sinks": 3}, "asks for rksim.attention.sinks, which this runtime does not"),
    "another namespace": ({"llama.block_count": 2}, "asks for llama.block_count, which this runtime does not know"),
    "architecture": ({"general.architecture": "llama"}, "general.architecture is 'llama', and version 3 of the format"),
    "no family": ({"rksim.family": None}, "lacks rksim.family"),
    "no blocks": ({"rksim.block_count": 0}, "rksim.block_count is 0, not between 1 and 4096"),
    "absurd blocks": ({"rksim.block_count": 2**32 - 1}, "rksim.block_count is 4294967295, not between"),
    "blocks that are not there": ({"rksim.block_count": 3}, "lacks the tensor blk.2.attn_q.weight"),
    "blocks too many": ({"rksim.block_count": 1}, "the tensor blk.1.attn_q.weight, which this runtime does"),
    "absurd context": ({"rksim.context_length": 2**31}, "rksim.context_length is 2147483648"),
    "absurd hidden": ({"rksim.embedding_length": 2**30}, "rksim.embedding_length is 1073741824"),
    "absurd vocabulary": ({"rksim.vocab_size": 2**31}, "rksim.vocab_size is 2147483648"),
    "odd heads": ({"rksim.attention.key_length": 21}, "heads of size 21"),
    "heads that do not share": ({"rksim.attention.head_count_kv": 2}, "3 heads cannot share 2 KV heads"),
    "size as text": ({"rksim.block_count": "2"}, "rksim.block_count has the wrong type"),
    "no norm": ({"rksim.attention.layer_norm_rms_epsilon": None}, "lacks rksim.attention.layer_norm_rms_epsilon"),
    "both norms": ({"rksim.attention.layer_norm_epsilon": 1e-5}, "epsilons of both kinds of norms"),
    "epsilon": ({"rksim.attention.layer_norm_rms_epsilon": 0.0}, "rms_epsilon is not a number from 1e-12"),
    "epsilon not finite": ({"rksim.attention.layer_norm_rms_epsilon": float("nan")}, "is not a number from 1e-12"),
    "activation": ({"rksim.activation": "relu"}, "rksim.activation is relu: there are silu and gelu_tanh"),
    "activation's type": ({"rksim.activation": 1}, "rksim.activation has the wrong type"),
    "parallel's type": ({"rksim.use_parallel_residual": 1}, "rksim.use_parallel_residual has the wrong type"),
    "parallel with two norms": ({"rksim.use_parallel_residual": True}, "attn_norm is the one norm"),
    **{
        f"{key} {value}": ({f"rksim.{key}": value}, f"rksim.{key} is not a number from 1e-12 to 1e12")
        for key in ("attention.scale", "attn_logit_softcapping", "final_logit_softcapping", "embedding_scale",
                    "residual_scale", "logit_scale", "rope.freq_base", "rope.scaling.attn_factor")
        for value in (-1.0, 0.0, 1e-13, 3e38, float("inf"))
    },
    "scale's type": ({"rksim.logit_scale": 2}, "rksim.logit_scale has the wrong type"),
    "windows for other blocks": ({"rksim.attention.sliding_window": (8, 0, 8)}, "has 3 values for 2 layers"),
    "windows for one": ({"rksim.attention.sliding_window": (8,)}, "has 1 values for 2 layers"),
    "one window": ({"rksim.attention.sliding_window": 8}, "rksim.attention.sliding_window has the wrong type"),
    "absurd window": ({"rksim.attention.sliding_window": (8, 2**31)}, "rksim.attention.sliding_window holds"),
    "window of floats": ({"rksim.attention.sliding_window": [8.0, 8.0]}, "sliding_window has the wrong item type"),
    "unknown RoPE": ({"rksim.rope.layers": (1, 3)}, "rksim.rope.layers holds 3"),
    "RoPE of other blocks": ({"rksim.rope.layers": (1, 1, 1)}, "has 3 values for 2 layers"),
    "no local base": ({"rksim.rope.layers": (1, 2)}, "names a local base, and there is none"),
    "RoPE of too much": ({"rksim.rope.dimension_count": 24}, "is 24 of a head of 22"),
    "RoPE of odd": ({"rksim.rope.dimension_count": 3}, "is 3 of a head of 22"),
    "RoPE of nothing": ({"rksim.rope.dimension_count": 0}, "rksim.rope.dimension_count is 0"),
    "temperature": ({"rksim.attention.temperature_scale": 0.1}, "lacks rksim.attention.temperature_length"),
    "steps of nothing": (
        {"rksim.attention.temperature_scale": 0.1, "rksim.attention.temperature_length": 0}, "is 0, not between"),
    "steps alone": ({"rksim.attention.temperature_length": 8}, "is nothing without rksim.attention.temperature_scale"),
    "another version": ({"rksim.version": 4}, "is of rksim.version 4, this runtime reads 2 and 3: update rk3588"),
    "version 1": ({"rksim.version": 1}, "is of rksim.version 1, this runtime reads 2 and 3: convert the model again"),
}  # fmt: skip
VECTOR, WIDE = np.ones(66, np.float32), np.ones(67, np.float32)
TENSORS: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "unknown": ({"blk.0.attn_sinks.weight": VECTOR}, "the tensor blk.0.attn_sinks.weight, which this runtime does not"),
    "unknown factors": ({"rope_factors_short.weight": VECTOR[:11]}, "the tensor rope_factors_short.weight, which"),
    "bias of RMSNorm": ({"blk.0.attn_norm.bias": VECTOR}, "blk.0.attn_norm has a bias, and RMSNorm knows none"),
    "bias of the embedding": ({"token_embd.bias": VECTOR}, "the tensor token_embd.bias, which this runtime"),
    "wide bias": ({"blk.1.attn_q.bias": WIDE}, "tensor blk.1.attn_q.bias is [67] of type 0, expected [66] of type 0"),
    "bias in fp16": ({"blk.1.attn_q.bias": VECTOR.astype(np.float16)}, "blk.1.attn_q.bias is [66] of type 1"),
    "bias not finite": ({"blk.1.attn_q.bias": VECTOR * np.float32("nan")}, "blk.1.attn_q.bias has a value that is not"),
    "norm not finite": ({"blk.1.ffn_norm.weight": VECTOR * np.float32("inf")}, "ffn_norm.weight has a value that"),
    "head norm of hidden": ({"blk.0.attn_q_norm.weight": VECTOR}, "attn_q_norm.weight is [66] of type 0, expected"),
    "factor of zero": ({"rope_freqs.weight": np.zeros(11, np.float32)}, "rope_freqs.weight divides a frequency by"),
    "factors of too much": ({"rope_freqs.weight": VECTOR[:22]}, "rope_freqs.weight is [22] of type 0, expected [11]"),
    "long factors alone": (
        {"rope_factors_long.weight": VECTOR[:11]}, "lacks rksim.rope.scaling.original_context_length"),
    "scale of fp16": ({"blk.0.attn_q.weight.scale": np.ones((66, 1), np.float32)}, "which this runtime does not know"),
}  # fmt: skip


def refusal(path: Path) -> str:
    with pytest.raises(SimError) as caught:
        hostlib.SimModel(path, threads=1)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def changed(path: Path, model: Model, keys: Mapping[str, Any], tensors: Mapping[str, Any], dtype: str = "fp16") -> Path:
    """``model`` as it is, but for these keys and tensors."""
    plain = artifacts.stored(model, dtype)
    return artifacts.write(path, {**model.metadata(dtype), **keys}, {**plain, **tensors})


@pytest.mark.parametrize("name", KEYS)
def test_keys_that_are_refused(name: str, tmp_path: Path) -> None:
    keys, sentence = KEYS[name]
    assert sentence in refusal(changed(tmp_path / "m.gguf", Model(), keys, {}))


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_are_refused(name: str, tmp_path: Path) -> None:
    tensors, sentence = TENSORS[name]
    assert sentence in refusal(changed(tmp_path / "m.gguf", Model(), {}, tensors))


def test_what_has_to_be_there(tmp_path: Path) -> None:
    """A norm, a bias or a gate may be absent; of everything else the lack is said by name."""
    model = replace(CASES["all"], layers=1, keys={**CASES["all"].keys, **dict.fromkeys(BY_BLOCK, (2,))})
    optional = ("_norm", ".bias", "ffn_gate", "rope_")
    everything, said = artifacts.stored(model, "w8a8"), model.described("w8a8")
    for name in everything:
        rest = {other: values for other, values in everything.items() if other != name}
        path = artifacts.write(tmp_path / "m.gguf", said, rest)
        if any(part in name for part in optional) and "output_norm.w" not in name and not name.endswith(".scale"):
            gone = name.removesuffix(".weight")  # with what belongs to it
            rest = {other: values for other, values in rest.items() if not other.startswith(f"{gone}.")}
            logits(artifacts.write(tmp_path / "m.gguf", said, rest), ids(3))
        else:
            assert name in refusal(path)


BY_BLOCK = ("attention.sliding_window", "rope.layers")
STORED = artifacts.stored(CASES["all"], "w8a8")
_KEYS = {*Model().metadata("w8a8"), *(f"rksim.{key}" for case in CASES.values() for key in case.keys)}
ANY_KEY = sorted(key for key in _KEYS if key.startswith("rksim."))


@given(
    keys=st.dictionaries(
        st.sampled_from(ANY_KEY),
        st.one_of(
            st.integers(0, 2**32 - 1), st.integers(0, 40), st.floats(width=32), st.booleans(), st.text(max_size=5),
            st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4).map(tuple), st.none(),
            st.lists(st.integers(0, 30), min_size=3, max_size=3).map(tuple),
        ),
        min_size=1, max_size=3,
    )
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_any_header_is_refused_or_runs(tmp_path_factory: pytest.TempPathFactory, keys: Mapping[str, Any]) -> None:
    model = replace(CASES["all"], norms=NORMS)
    path = tmp_path_factory.getbasetemp() / "any.gguf"
    artifacts.write(path, {**model.described("w8a8"), **keys}, STORED)
    try:
        assert logits(path, ids(3)).shape == (3, 131)
    except SimError as error:
        assert str(error) and "\n" not in str(error)


def of_version_2(path: Path, absent: str = "", architecture: str = "llama") -> Path:
    """A model without features as version 2 has it, but for the tensor ``absent``."""
    ours = ("version", "dtype", "group_size", "header_crc32")
    said = {
        key if key.removeprefix("rksim.") in ours else key.replace("rksim.", "llama."): value
        for key, value in Model().described("w8a8").items()
        if key != "rksim.family"
    }
    tensors = {name: values for name, values in artifacts.stored(Model(), "w8a8").items() if name != absent}
    return artifacts.write(path, {**said, "general.architecture": architecture}, tensors, version=2)


def test_version_2_has_one_architecture(tmp_path: Path) -> None:
    """It computes as it did; what version 3 may lack, it must have."""
    path = Model().write(tmp_path / "3.gguf", "w8a8")
    np.testing.assert_array_equal(logits(of_version_2(tmp_path / "2.gguf"), ids(39)), logits(path, ids(39)))
    for name in ("blk.0.attn_norm.weight", "blk.1.ffn_norm.weight", "blk.1.ffn_gate.weight"):
        assert f"lacks the tensor {name}" in refusal(of_version_2(tmp_path / "2.gguf", name))
    assert "is 'rksim', and version 2 of the format" in refusal(of_version_2(tmp_path / "2.gguf", "", "rksim"))
