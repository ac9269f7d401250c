"""The fp32 bundle against transformers' fp32, through the golden logits (tests/golden_logits/make.py writes them)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from rk3588 import hostlib
from rkconvert import accuracy
from tests import models, smollm2
from tests.golden_logits import cases

TOLERANCE = 1e-3


@pytest.mark.parametrize("name", cases.TINY)
def test_tiny_models_give_the_logits_of_transformers(name: str, tmp_path: Path) -> None:
    shape, golden = cases.TINY[name], cases.load(name)
    source = models.write_llama(tmp_path / "source", models.config(shape, "fp32"), shape.weights())
    smollm2.convert(source, tmp_path, ["fp32"], name=name)
    with hostlib.SimModel(tmp_path / f"{name}-rk3588-fp32" / "model.sim.gguf") as model:
        logits = model.logits(golden["ids"].tolist())
    np.testing.assert_allclose(logits, golden["logits"], rtol=0, atol=TOLERANCE)
    assert logits.std() > 0.3  # a model that says next to nothing would pass anything


@pytest.mark.model
def test_smollm2_gives_the_logits_of_transformers(smollm2_bundles: Mapping[str, Path]) -> None:
    golden = cases.load("smollm2")
    with hostlib.SimModel(smollm2_bundles["fp32"] / "model.sim.gguf") as model:
        logits = model.logits(golden["ids"].tolist())
    found = cases.summary(logits)
    np.testing.assert_allclose(found["columns"], golden["columns"], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(found["log_sum_exp"], golden["log_sum_exp"], rtol=0, atol=TOLERANCE)
    # By the golden's own ids, as two that are nearly level may have changed places.
    top = np.take_along_axis(logits, golden["top_ids"].astype(np.int64), axis=1)
    np.testing.assert_allclose(top, golden["top"], rtol=0, atol=TOLERANCE)
    assert np.array_equal(found["top_ids"][:, 0], golden["top_ids"][:, 0])


@pytest.mark.model
@pytest.mark.parametrize("dtype", ["w8a8", "w8a8_g128"])
def test_int8_stays_near_fp32(smollm2_bundles: Mapping[str, Path], dtype: str) -> None:
    """0.06 is what these 48 tokens cost; the figures of a whole text come from `python -m tests.bench.accuracy`."""
    plain, int8 = (hostlib.SimModel(smollm2_bundles[name] / "model.sim.gguf") for name in ("fp32", dtype))
    with plain, int8:
        found = accuracy.compare(plain, int8, [cases.SMOLLM2_IDS], "48 tokens")
    assert 1e-4 < found.divergence < 0.08  # at nothing at all, it would be fp32 that was read
    assert found.agreement > 0.8
