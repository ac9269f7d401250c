"""Settings of a GGUF file that are said in another way, or not at all: read as llama.cpp does, or refused by name.

What has a Hugging Face counterpart must give the same artifact, byte for byte.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from rk3588 import quant
from rk3588.errors import CheckpointError
from rk3588.gguf import read_file
from rkconvert.build import convert
from rkconvert.sources.opening import open_source
from tests import models
from tests.plans import make_plan

TINY = models.Tiny()
DROP = object()


def file(path: Path, keys: Mapping[str, Any], tiny: models.Tiny = TINY) -> Path:
    """The tiny model with these keys of ``llama.`` (or whole ones) set, or dropped."""

    def change(there: dict[str, Any]) -> None:
        for key, value in keys.items():
            name = key if key.startswith(("general.", "tokenizer.", "llama.")) else f"llama.{key}"
            there.pop(name, None)
            if value is not DROP:
                there[name] = gguf.gguf_writer.GGUFValue(value, gguf.GGUFValueType.get_type(value))

    return models.write_gguf(path, tiny, tiny.weights(), change=change)


def artifact(model: Path, out: Path) -> bytes:
    (folder,) = convert(make_plan(open_source(model), "tiny", out, [quant.scheme("fp32")]))
    return (folder / "model.sim.gguf").read_bytes()


def linear(factor: float) -> dict[str, Any]:
    return {"type": "linear", "factor": factor}


SAID: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "type and factor": ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, linear(4)),
    "the name of 2023": ({"rope.scale_linear": 4.0}, linear(4)),
    "a factor without type": ({"rope.scaling.factor": 4.0}, linear(4)),
    "both names": ({"rope.scaling.factor": 4.0, "rope.scale_linear": 8.0}, linear(4)),
    "a type and the name of 2023": ({"rope.scaling.type": "linear", "rope.scale_linear": 4.0}, linear(4)),
    "a whole number": ({"rope.scaling.factor": 4}, linear(4)),
    "a context that only YaRN looks at": (
        {
            "rope.scaling.type": "linear", "rope.scaling.factor": 4.0, "rope.scaling.finetuned": True,
            "rope.scaling.original_context_length": 128, "rope.scaling.yarn_beta_fast": 32.0,
        },
        linear(4),
    ),
    "type none": ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0, "rope.scale_linear": 4.0}, None),
    "no factor": ({"rope.scaling.type": "linear"}, None),
    "by nothing": ({"rope.scale_linear": 0.0}, None),
    "by one": ({"rope.scaling.factor": 1.0}, None),
    "no freq_base": ({"rope.freq_base": DROP}, None),
    "no dimension_count": ({"rope.dimension_count": DROP, "attention.value_length": DROP}, None),
    "the head's size is what is left": ({"attention.key_length": DROP}, None),
    "no vocab_size": ({"vocab_size": DROP}, None),
    "an old vocab_size": ({"vocab_size": 320}, None),
    "for each layer": ({"attention.head_count": [4, 4], "feed_forward_length": [160, 160]}, None),
    "neutral": (
        {
            "logit_scale": 1.0, "residual_scale": 0.0, "attention.clamp_kqv": 0.0, "expert_count": 0,
            "expert_used_count": 0, "attention.scale": 0.25, "attention.sliding_window": 4096, "attention.causal": True,
            "rope.scaling.attn_factor": 1.0, "rope.scaling.yarn_ext_factor": -1.0, "use_parallel_residual": False,
            "tensor_data_layout": "Meta AI original pth",
        },
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SAID)
def test_the_same_as_the_folder(tmp_path: Path, case: str) -> None:
    keys, scaling = SAID[case]
    folder = models.ends_as_llama_cpp(models.tiny_llama(tmp_path / "m", rope_scaling=scaling, dtype="fp32"))
    assert artifact(file(tmp_path / "tiny.gguf", keys), tmp_path / "1") == artifact(folder, tmp_path / "2")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another way": ({"rope.scaling.type": "ntk", "rope.scaling.factor": 4.0}, r"'ntk' \(rope.scaling.type\) is not"),
    "longrope without its tensors": ({"rope.scaling.type": "longrope"}, r"lacks the tensor rope_factors_short.weight"),
    "a negative factor": ({"rope.scaling.factor": -4.0}, r"'rope.scaling.factor' is -4.0"),
    "part of a head": ({"rope.dimension_count": 8}, r"rope.dimension_count is 8, only the head's size \(16\)"),
    "V of another size": ({"attention.value_length": 32}, r"attention.value_length is 32"),
    "no epsilon": ({"attention.layer_norm_rms_epsilon": DROP}, r"lacks 'attention.layer_norm_rms_epsilon'"),
    "experts": ({"expert_count": 8}, r"a mixture of experts"),
    "layers that differ": ({"attention.head_count_kv": [2, 4]}, r"'attention.head_count_kv' is \[2, 4\]"),
    **{
        key: ({key: value}, rf"tiny.gguf: llama.{key} is {value}, which this version does not know")
        for key, value in {
            "logit_scale": 0.5, "residual_scale": 2.0, "embedding_scale": 12.0, "attention.scale": 0.125,
            "attention.clamp_kqv": 8.0, "attention.sliding_window": 128, "attention.causal": False,
            "rope.scaling.yarn_attn_factor": 2.0, "rope.scaling.yarn_ext_factor": 1.0,
            "rope.scaling.alpha": 1000.0, "use_parallel_residual": True, "attn_logit_softcapping": 50.0, "future": 1,
        }.items()
    },
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_change_the_answer_is_refused(tmp_path: Path, case: str) -> None:
    keys, sentence = REFUSED[case]
    with pytest.raises(CheckpointError, match=sentence):
        open_source(file(tmp_path / "tiny.gguf", keys))


@pytest.mark.parametrize(
    ("count", "more", "sentence"),
    [
        ((1 << 24) + 1, 1 << 26, r"a list of 16777217 items, more than 16777216"),
        (1 << 24, 1 << 26, r"a header of more than 128 MB"),
    ],
)
def test_a_header_without_end(tmp_path: Path, count: int, more: int, sentence: str) -> None:
    """What the file could hold, and no model needs: refused before it is in memory."""
    path = tmp_path / "big.gguf"
    key = struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 10, count)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key)
    with path.open("r+b") as sparse:
        sparse.truncate(8 * (count + more))
    with pytest.raises(CheckpointError, match=sentence):
        read_file(path)


def test_a_key_that_is_there_twice(tmp_path: Path) -> None:
    path = file(tmp_path / "tiny.gguf", {"rope.scale_lineax": 0.0, "rope.scale_linear": 2.0})
    path.write_bytes(path.read_bytes().replace(b"scale_lineax", b"scale_linear"))
    with pytest.raises(CheckpointError, match=r"the key 'llama.rope.scale_linear' is there twice"):
        read_file(path)


def test_factors_of_a_tensor_and_of_the_settings_multiply(tmp_path: Path) -> None:
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 64}  # fmt: skip
    tiny = models.Tiny(rope_scaling=scaling)
    plain = open_source(file(tmp_path / "a.gguf", {}, tiny)).config.rope.scaling.factors
    both = open_source(file(tmp_path / "b.gguf", {"rope.scale_linear": 2.0}, tiny)).config.rope.scaling.factors
    assert plain and both
    assert both == tuple(2 * factor for factor in plain)


@pytest.mark.parametrize("name", ["F64", "I8", "Q8_1"])
def test_a_type_that_nothing_here_reads(tmp_path: Path, name: str) -> None:
    path = file(tmp_path / "tiny.gguf", {})
    raw = bytearray(path.read_bytes())
    at = raw.index(b"output_norm.weight") + len(b"output_norm.weight") + 4 + 8
    struct.pack_into("<I", raw, at, gguf.GGMLQuantizationType[name])
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=rf"type {name}, .* cannot dequantise; it can F32, F16, Q4_0, .* Q4_K, "):
        open_source(path)


def test_dimensions_of_one_do_not_count(tmp_path: Path) -> None:
    """Some writers give every tensor four dimensions."""
    weights = TINY.weights()
    plain = artifact(models.write_gguf(tmp_path / "a.gguf", TINY, weights), tmp_path / "1")

    class Deep(np.ndarray[Any, Any]):
        ndim = 1  # for write_gguf: a tensor that it leaves as it is

    name = "model.layers.0.mlp.up_proj.weight"
    weights[name] = weights[name].reshape(1, 1, *weights[name].shape).view(Deep)
    deep = models.write_gguf(tmp_path / "b.gguf", TINY, weights)
    assert read_file(deep).tensors["blk.0.ffn_up.weight"].dims == (64, 160, 1, 1)
    assert artifact(deep, tmp_path / "2") == plain
