"""Every family's fp32 bundle against transformers' fp32 (tests/golden_families/make.py writes the golden logits)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from rk3588 import hostlib, quant
from rkconvert.architectures.model import BASE_ROPE, ModelConfig, RopeScaling
from rkconvert.build import convert
from rkconvert.sources.base import Source
from rkconvert.sources.opening import open_source
from tests import models
from tests.golden_families import cases
from tests.plans import make_plan

TOLERANCE = 1e-4  # of the logits' standard deviation


def folder_of(name: str, folder: Path) -> Path:
    """The case as a Hugging Face folder."""
    return models.write_llama(folder, dict(cases.CASES[name]), cases.weights(name))


def logits(
    source: Source, folder: Path, count: int = cases.TOKENS, dtype: str = "fp32", rotate: str | None = None
) -> npt.NDArray[np.float32]:
    schemes = [quant.scheme(dtype)]
    (bundle,) = convert(make_plan(source, "tiny", folder, schemes, threads=1, overwrite=True, rotate=rotate))
    with hostlib.SimModel(bundle / "model.sim.gguf") as model:
        return model.logits(cases.ids(count))


def difference(found: npt.NDArray[np.float32], wanted: npt.NDArray[np.float32]) -> float:
    """The largest, in standard deviations of what is wanted."""
    return float(np.abs(found - wanted).max() / wanted.std())


@pytest.mark.parametrize("name", cases.CASES)
def test_a_family_gives_the_logits_of_transformers(name: str, tmp_path: Path) -> None:
    source, golden = open_source(folder_of(name, tmp_path / "source")), cases.load(name)
    assert golden["logits"].std() >= 1  # a model that says next to nothing would pass anything
    assert difference(logits(source, tmp_path), golden["logits"]) < TOLERANCE
    if "short" in golden:  # LongRoPE within its original context
        assert difference(logits(source, tmp_path, len(golden["short"])), golden["short"]) < TOLERANCE


def without(config: ModelConfig) -> Iterator[tuple[str, ModelConfig]]:
    """``config`` with one of its features off, for each of them whose absence asks for no other tensors."""
    rope = config.rope
    changed = {
        "activation": {"activation": "gelu_tanh" if config.activation == "silu" else "silu"},
        "attention_scale": {"attention_scale": None},
        "attention_soft_cap": {"attention_soft_cap": None},
        "logit_soft_cap": {"logit_soft_cap": None},
        "embedding_scale": {"embedding_scale": 1.0},
        "residual_scale": {"residual_scale": 1.0},
        "logit_scale": {"logit_scale": 1.0},
        "windows": {"windows": ()},
        "some windows": {"windows": tuple(reversed(config.windows))},
        "norm_eps": {"norm_eps": config.norm_eps * 1e4},
        "rope scaling": {"rope": replace(rope, scaling=RopeScaling())},
        "attention factor": {"rope": replace(rope, scaling=replace(rope.scaling, attention_factor=1.0))},
        "rope layers": {"rope": replace(rope, layers=(BASE_ROPE,) * config.layers if rope.layers else ())},
        "local theta": {"rope": replace(rope, local_theta=rope.local_theta and rope.theta)},
        "theta": {"rope": replace(rope, theta=rope.theta * 2)},
        "rope dims": {"rope": replace(rope, dims=config.head_dim, scaling=RopeScaling())},
    }
    for feature, fields in changed.items():
        other = replace(config, **fields)  # type: ignore[arg-type]
        if other != config:
            yield feature, other


@pytest.mark.parametrize("name", cases.CASES)
def test_each_feature_shows(name: str, tmp_path: Path) -> None:
    """A test that would pass without a feature says nothing about it."""
    source, golden = open_source(folder_of(name, tmp_path / "source")), cases.load(name)
    features = dict(without(source.config))
    assert len(features) >= 2
    for feature, config in features.items():
        assert difference(logits(replace(source, config=config), tmp_path), golden["logits"]) > 10 * TOLERANCE, feature


@pytest.mark.parametrize("name", cases.CASES)
def test_int8_stays_near(name: str, tmp_path: Path) -> None:
    source, golden = open_source(folder_of(name, tmp_path / "source")), cases.load(name)
    for dtype in ("w8a8", "w8a8_g128"):
        found = logits(source, tmp_path, dtype=dtype)
        assert 1e-4 < difference(found, golden["logits"]) < 1.5
        assert np.corrcoef(found.ravel(), golden["logits"].ravel())[0, 1] > 0.99
