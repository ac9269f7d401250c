"""What models read on calibration texts, and `--smooth`, which moves its outliers into weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rkconvert.rotation import forward
from rkconvert.sources.base import Source
from rkconvert.sources.opening import open_source
from tests import models
from tests.convert.test_families import TOLERANCE, difference, folder_of
from tests.golden_families import cases, remote


def head_logits(source: Source, windows: list[list[int]]) -> forward.Floats:
    """Of every position of all windows, by way of ``forward``."""
    *_, last = forward.run(source, windows)
    (weight,), config = last.weights, source.config
    y = last.x @ weight.T
    if "output.bias" in config.tensors():
        y = y + forward.stored(source, "output.bias")
    y = y * np.float32(config.logit_scale)
    cap = config.logit_soft_cap
    return np.tanh(y / np.float32(cap)) * np.float32(cap) if cap else y


@pytest.mark.parametrize("name", cases.CASES)
def test_what_is_read_is_what_transformers_reads(name: str, tmp_path: Path) -> None:
    """Else the logits at the end were others. A window is read as if there were no other."""
    source, golden = open_source(folder_of(name, tmp_path)), cases.load(name)
    ids = cases.ids(cases.TOKENS)
    assert difference(head_logits(source, [ids]), golden["logits"]) < TOLERANCE
    if "short" not in golden:  # LongRoPE's factors are those of the longest window
        found = head_logits(source, [ids[:7], ids, ids[:1]])
        assert difference(found[7:-1], golden["logits"]) < TOLERANCE
        assert difference(found[:7], golden["logits"][:7]) < TOLERANCE


@pytest.mark.parametrize("name", remote.CASES)
def test_what_is_read_is_what_the_authors_code_reads(name: str, tmp_path: Path) -> None:
    source = open_source(models.write_llama(tmp_path / "m", dict(remote.CASES[name]), remote.weights(name)))
    wanted = remote.logits(name, cases.ids()).astype(np.float32)
    assert difference(head_logits(source, [cases.ids()]), wanted) < TOLERANCE
