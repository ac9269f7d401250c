"""Families of remote code beside an independent reference, and layers that lie fused in their checkpoints."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rk3588 import bundle, quant
from rk3588.errors import CheckpointError
from rkconvert.artifact import reading
from rkconvert.build import convert
from rkconvert.sources.opening import open_source
from tests import models
from tests.convert.test_families import TOLERANCE, difference, logits, without
from tests.golden_families import cases, remote
from tests.plans import make_plan


@pytest.mark.parametrize("name", remote.CASES)
def test_a_family_gives_the_logits_of_its_authors_code(name: str, tmp_path: Path) -> None:
    source = open_source(models.write_llama(tmp_path / "m", dict(remote.CASES[name]), remote.weights(name)))
    wanted = remote.logits(name, cases.ids()).astype(np.float32)
    assert wanted.std() >= 1
    assert difference(logits(source, tmp_path), wanted) < TOLERANCE
    if "4" in name:  # LongRoPE within its original context
        short = remote.logits(name, cases.ids(12)).astype(np.float32)
        assert difference(logits(source, tmp_path, 12), short) < TOLERANCE
    features = dict(without(source.config))
    for feature, config in features.items():
        assert difference(logits(replace(source, config=config), tmp_path), wanted) > 10 * TOLERANCE, feature


@pytest.mark.parametrize(("given", "context"), [({}, 512), ({"original_max_position_embeddings": 64}, 64)])
def test_dynamic_ntk_ends_at_the_original_context(tmp_path: Path, given: dict[str, Any], context: int) -> None:
    """Up to there it scales nothing."""
    settings = {**remote.CASES["internlm2"], "rope_scaling": {"type": "dynamic", "factor": 2.0, **given}}
    source = open_source(models.write_llama(tmp_path / "m", settings, remote.weights("internlm2")))
    assert source.config.context_length == context and source.config.rope.scaling.factors == ()


FUSED = {
    "internlm2": (dict(remote.CASES["internlm2_dynamic"]), remote.weights("internlm2_dynamic")),
    "phi3": (dict(cases.CASES["phi3"]), cases.weights("phi3")),
}


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("family", FUSED)
def test_fused_layers_are_split_whatever_the_blocks(
    family: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one file or in shards, read in blocks of many runs of rows or in several blocks a run."""
    settings, weights = FUSED[family]
    whole = models.write_llama(tmp_path / "whole", settings, weights, dtype=dtype)
    shards = models.write_llama(tmp_path / "shards", settings, weights, dtype=dtype, shards=3)
    schemes = [quant.scheme("fp32"), quant.scheme("w8a8")]
    first = convert(make_plan(open_source(whole), "a", tmp_path / "1", schemes, threads=2))
    monkeypatch.setattr(reading, "BLOCK_BYTES", 500)  # three rows, of runs of 16 and 32
    second = convert(make_plan(open_source(shards), "a", tmp_path / "2", schemes, threads=2))
    for one, other in zip(first, second, strict=True):
        assert (one / bundle.SIM_MODEL).read_bytes() == (other / bundle.SIM_MODEL).read_bytes()


def test_what_a_fused_layer_lacks_is_named_as_the_checkpoint_has_it(tmp_path: Path) -> None:
    settings, weights = FUSED["internlm2"]
    wrong = {**weights, "model.layers.1.attention.wqkv.weight": np.zeros((127, 64), np.float32)}
    with pytest.raises(CheckpointError, match=r"layers.1.attention.wqkv.weight has shape \[127, 64\], .* \[128, 64\]"):
        open_source(models.write_llama(tmp_path / "a", settings, wrong))
    left = {name: w for name, w in weights.items() if name != "model.layers.2.attention.wqkv.bias"}
    with pytest.raises(CheckpointError, match=r"lacks the tensor model.layers.2.attention.wqkv.bias"):
        open_source(models.write_llama(tmp_path / "b", settings, left))


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_of_a_model_with_images_the_language_model_is_converted(tmp_path: Path, prefix: str) -> None:
    name = "gemma3"
    plain = models.write_llama(tmp_path / "plain", dict(cases.CASES[name]), cases.weights(name))
    text = {key: value for key, value in cases.CASES[name].items() if key != "architectures"}
    settings = {
        "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": text,
        "vision_config": {"hidden_size": 8}, "mm_tokens_per_image": 256, "vocab_size": cases.VOCABULARY,
    }  # fmt: skip
    weights = {prefix + key.removeprefix("model."): value for key, value in cases.weights(name).items()}
    image = np.zeros((2, 2), np.float32)
    weights |= {"vision_tower.x.weight": image, "multi_modal_projector.y.weight": image}
    source = open_source(models.write_llama(tmp_path / "m", settings, weights))
    assert "the part that reads images is left out" in source.notes[0]
    assert source.config == open_source(plain).config
    found, wanted = logits(source, tmp_path), logits(open_source(plain), tmp_path)
    assert np.array_equal(found, wanted)
    (tmp_path / "m" / "config.json").write_text(json.dumps({**settings, "text_config": {}}))
    with pytest.raises(CheckpointError, match="has no text_config"):
        open_source(tmp_path / "m")
