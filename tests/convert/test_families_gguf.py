"""GGUF files of every family, as llama.cpp's converter writes them, beside the Hugging Face folders they come from.

What llama.cpp computes of the same files is compared by tests/golden_families/llama_cpp.py.
"""

from __future__ import annotations

import functools
import math
import tempfile
from pathlib import Path
from typing import Any

import gguf
import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given

from rk3588 import hostlib, quant
from rk3588.errors import CheckpointError
from rkconvert.architectures import gguf_metadata
from rkconvert.architectures.model import BASE_ROPE
from rkconvert.build import convert
from rkconvert.sources.base import Source
from rkconvert.sources.gguf_file import read_headers
from rkconvert.sources.opening import open_source
from tests import models
from tests.golden_families import cases, gguf_files
from tests.packed import blocks
from tests.plans import make_plan


def artifact(source: Source, out: Path) -> Path:
    (bundle,) = convert(make_plan(source, "tiny", out, [quant.scheme("fp32")], threads=1))
    return bundle / "model.sim.gguf"


def folder_of(name: str, folder: Path) -> Path:
    """The case as a Hugging Face folder that asks for what a GGUF file can say."""
    settings = {**gguf_files.CASES[name], **gguf_files.UNSAID.get(name, {})}
    return models.ends_as_llama_cpp(models.write_llama(folder, settings, gguf_files.weights(name)))


@pytest.mark.parametrize("name", gguf_files.CASES)
def test_a_file_gives_the_artifact_of_the_folder(name: str, tmp_path: Path) -> None:
    file = gguf_files.write(name, tmp_path / "tiny.gguf")
    found = artifact(open_source(file), tmp_path / "1")
    assert found.read_bytes() == artifact(open_source(folder_of(name, tmp_path / "m")), tmp_path / "2").read_bytes()


def changed(path: Path, name: str, settings: dict[str, Any]) -> Path:
    """The case with these settings of its family; None: without."""
    kinds = gguf.GGUFValueType

    def change(keys: dict[str, Any]) -> None:
        for key, value in settings.items():
            keys.pop(full := f"{gguf_files.architecture(name)}.{key}", None)
            if value is not None:
                kind = kinds.UINT32 if type(value) is int else kinds.get_type(value)
                keys[full] = gguf.gguf_writer.GGUFValue(value, kind)

    return gguf_files.write(name, path / "tiny.gguf", change=change)


def test_minicpm_without_its_scales_has_those_of_its_first_models(tmp_path: Path) -> None:
    keys = ("embedding_scale", "residual_scale", "logit_scale")
    config = open_source(changed(tmp_path, "minicpm", dict.fromkeys(keys))).config
    assert (config.embedding_scale, config.logit_scale) == (12, 256 / config.hidden)
    assert config.residual_scale == pytest.approx(1.4 / math.sqrt(config.layers))


@pytest.mark.parametrize("window", [None, 0])
def test_gemma3_without_a_window_turns_all_layers_alike(tmp_path: Path, window: int | None) -> None:
    config = open_source(changed(tmp_path, "gemma3", {"attention.sliding_window": window})).config
    assert (config.windows, config.rope.local_theta) == ((), None)
    assert set(config.rope.layers) <= {BASE_ROPE}


def test_gemma2_says_less_than_it_has(tmp_path: Path) -> None:
    keys = ("attention.sliding_window", "attn_logit_softcapping", "final_logit_softcapping")
    config = open_source(changed(tmp_path, "gemma2", dict.fromkeys(keys) | {"context_length": 8192})).config
    assert (config.windows, config.attention_soft_cap, config.logit_soft_cap) == ((4096, 0, 4096), 50, 30)


@pytest.mark.parametrize(("name", "layers", "scale"), [("gemma2", 46, 16**-0.5), ("gemma3", 62, 16**-0.5)])
def test_the_27b_is_known_by_its_layers(name: str, layers: int, scale: float, tmp_path: Path) -> None:
    """Its queries are scaled by hidden / heads."""
    metadata = read_headers(changed(tmp_path, name, {"block_count": layers})).metadata
    assert gguf_metadata.read_config(metadata, "x", vocab_size=384, tied=True).attention_scale == scale


def test_a_factor_counts_beside_an_original_context(tmp_path: Path) -> None:
    keys = {"rope.scaling.original_context_length": 16, "rope.scaling.factor": 4.0}
    scaling = open_source(changed(tmp_path, "qwen2", keys)).config.rope.scaling
    assert (set(scaling.factors), scaling.short_context) == ({4.0}, 0)


def test_a_factor_counts_beside_longrope(tmp_path: Path) -> None:
    plain = open_source(gguf_files.write("phi3_longrope", tmp_path / "plain.gguf")).config.rope.scaling
    both = open_source(changed(tmp_path, "phi3_longrope", {"rope.scaling.factor": 2.0})).config.rope.scaling
    assert both.factors == tuple(2 * factor for factor in plain.factors)
    assert both.long_factors == tuple(2 * factor for factor in plain.long_factors)


# What llama.cpp passes over in these families, and what would be another model if it were meant.
REFUSED = [
    ("qwen2", "attention.scale", 0.5), ("qwen2", "final_logit_softcapping", 3.0), ("qwen2", "logit_scale", 2.0),
    ("qwen2", "attention.sliding_window", 8), ("qwen2_yarn", "rope.scaling.yarn_attn_factor", 2.0),
    ("qwen2_yarn", "rope.scaling.yarn_ext_factor", 0.5), ("gemma", "attention.scale", 0.5),
    ("gemma", "final_logit_softcapping", 3.0), ("gemma2", "rope.freq_base_swa", 1000.0),
    ("gemma3", "attn_logit_softcapping", 3.0), ("gemma3", "attention.scale", 0.5), ("minicpm", "attention.scale", 0.5),
    ("phi3_longrope", "attention.scale", 0.5), ("phi2", "attention.sliding_window", 8),
    ("smollm3", "attention.sliding_window", 8), ("internlm2", "logit_scale", 2.0),
]  # fmt: skip


@pytest.mark.parametrize(("name", "key", "value"), REFUSED)
def test_a_setting_that_its_family_does_not_have_is_refused(name: str, key: str, value: float, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"\.{key} is {value}, which this version does not know"):
        open_source(changed(tmp_path, name, {key: value}))


@pytest.mark.parametrize(
    ("name", "keys", "sentence"),
    [
        ("gemma3", {"rope.scaling.type": "yarn"}, r"'yarn' \(rope.scaling.type\) is not supported for Gemma 3"),
        ("gemma3", {"attention.sliding_window_pattern": [True, False, True]}, r"sliding_window_pattern' is \[True"),
        ("gemma2", {"attention.sliding_window": 0}, r"'attention.sliding_window' is 0, expected a whole number"),
        ("minicpm", {"logit_scale": 0.0}, r"'logit_scale' is 0.0, expected a number above zero"),
        ("qwen3", {"rope.dimension_count": 16}, r"rope.dimension_count is 16, only the head's size \(32\)"),
        ("qwen2_yarn", {"rope.scaling.yarn_attn_factor": "x"}, r"'rope.scaling.yarn_attn_factor' is 'x', expected"),
    ],
)
def test_settings_that_do_not_fit(name: str, keys: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        open_source(changed(tmp_path, name, keys))


def test_half_of_longrope_is_refused(tmp_path: Path) -> None:
    file = gguf_files.write("phi3_longrope", tmp_path / "tiny.gguf")
    file.write_bytes(file.read_bytes().replace(b"rope_factors_long.weight", b"rope_factors_lost.weight"))
    with pytest.raises(CheckpointError, match=r"lacks the tensor rope_factors_long.weight"):
        open_source(file)


def test_fused_queries_keys_and_values(tmp_path: Path) -> None:
    """Phi-2's files of 2024 have them in one tensor."""
    fused = gguf_files.write("phi2", tmp_path / "fused.gguf", fused=True)
    assert "blk.0.attn_qkv.bias" in read_headers(fused).tensors
    plain = gguf_files.write("phi2", tmp_path / "plain.gguf")
    found = artifact(open_source(fused), tmp_path / "1").read_bytes()
    assert found == artifact(open_source(plain), tmp_path / "2").read_bytes()


def as_q4_k_m(name: str, weight: npt.NDArray[np.float32]) -> tuple[npt.NDArray[Any], gguf.GGMLQuantizationType]:
    """Random bytes of the types that llama.cpp's Q4_K_M gives matrices; vectors as they are."""
    kinds = gguf.GGMLQuantizationType
    if weight.ndim == 1:
        return weight, kinds.F32
    kind = kinds.Q6_K if name.startswith(("token_embd", "output")) or "ffn_down" in name else kinds.Q4_K
    block, nbytes = gguf.GGML_QUANT_SIZES[kind]
    raw = np.resize(blocks(kind.name), (weight.size // block, nbytes))
    return raw.reshape(len(weight), -1), kind


@pytest.mark.parametrize("name", ["qwen2_wide", "phi3_wide"])
def test_k_quants_of_a_family_in_parts(name: str, tmp_path: Path) -> None:
    """Packed and in several files, the same as the F32 file of the same weights; also rows of a fused layer."""

    def expanded(tensor: str, weight: npt.NDArray[np.float32]) -> tuple[npt.NDArray[Any], Any]:
        raw, kind = as_q4_k_m(tensor, weight)
        return gguf.quants.dequantize(raw, kind), gguf.GGMLQuantizationType.F32

    plain = gguf_files.write(name, tmp_path / "plain.gguf", tensor=expanded)
    gguf_files.write(name, tmp_path / "packed.gguf", tensor=as_q4_k_m, split_max_tensors=3)
    parts = sorted(tmp_path.glob("packed-*.gguf"))
    assert len(parts) > 2
    source = open_source(parts[1])
    assert {tensor.kind for tensor in source.tensors.values()} == {"F32", "Q4_K", "Q6_K"}
    found = artifact(source, tmp_path / "1").read_bytes()
    assert found == artifact(open_source(plain), tmp_path / "2").read_bytes()


def test_the_logits_of_a_file_are_those_of_transformers(tmp_path: Path) -> None:
    """One case to the end: the others have the folder's artifact, whose logits test_families.py compares."""
    found = artifact(open_source(gguf_files.write("qwen3", tmp_path / "tiny.gguf")), tmp_path)
    golden = cases.load("qwen3")["logits"]
    with hostlib.SimModel(found) as model:
        assert np.abs(model.logits(cases.ids()) - golden).max() < 1e-4 * golden.std()


@functools.cache
def metadata(name: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return read_headers(gguf_files.write(name, Path(folder) / "tiny.gguf")).metadata


NUMBERS = st.integers(-1, 1 << 33) | st.floats() | st.sampled_from([0, 1, 2, 8, 16, 64, 0.0, 1.0])
KINDS = st.sampled_from(["yarn", "linear", "longrope", "none", "", "gemma3", "\x00"])
VALUES = NUMBERS | KINDS | st.booleans() | st.lists(st.integers(0, 3), max_size=4) | st.none()
SETTINGS = sorted(gguf_metadata.KEYS)
FUZZED = ["llama_biases", "qwen2_yarn", "phi3_longrope", "phi2", "gemma2", "gemma3", "minicpm", "smollm3"]


@given(st.sampled_from(FUZZED), st.dictionaries(st.sampled_from(SETTINGS), VALUES, max_size=4))
def test_any_settings_end_in_a_model_or_in_one_sentence(name: str, changes: dict[str, Any]) -> None:
    family = gguf_files.architecture(name)
    settings = metadata(name) | {f"{family}.{key}": value for key, value in changes.items()}
    try:
        config = gguf_metadata.read_config(settings, "x.gguf", vocab_size=384, tied=True)
        config = gguf_metadata.with_rope_factors(config, {}, settings, "x.gguf")
    except CheckpointError as error:
        assert str(error).startswith("x.gguf") and "\n" not in str(error)
        return
    numbers = [config.norm_eps, config.rope.theta, config.embedding_scale, config.residual_scale, config.logit_scale]
    numbers += [*config.rope.scaling.factors, config.rope.scaling.attention_factor]
    assert all(math.isfinite(number) and number > 0 for number in numbers)
    assert len(config.windows) in (0, config.layers) and len(config.rope.layers) in (0, config.layers)
