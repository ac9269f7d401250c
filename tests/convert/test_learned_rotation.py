"""`--rotate learned`: R1 by Cayley steps on calibration texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rk3588 import quant
from rkconvert.calibration import Dataset
from rkconvert.rotation import forward, learn, texts
from rkconvert.rotation.options import Rotate
from rkconvert.rotation.prepare import prepared, rotation_of
from rkconvert.rotation.rotate import rotated
from rkconvert.sources.base import Source
from rkconvert.sources.opening import open_source
from tests import models
from tests.convert.test_families import TOLERANCE, difference, folder_of, logits
from tests.golden_families import cases
from tests.plans import make_plan

LEARNED = Rotate("learned")


def not_a_step(_size: int) -> None:
    pass


def sampled(source: Source) -> tuple[forward.Floats, forward.Floats]:
    start = rotated(source, rotation_of(LEARNED, source), LEARNED)
    return learn.sampled(start, [cases.ids()], (), np.random.default_rng(0), not_a_step)


@pytest.mark.parametrize("name", ["qwen2", "gemma", "llama_biases"])
def test_a_model_turned_so_gives_the_logits_of_transformers(name: str, tmp_path: Path) -> None:
    source, golden = open_source(folder_of(name, tmp_path / "source")), cases.load(name)
    assert difference(logits(source, tmp_path, rotate="learned"), golden["logits"]) < TOLERANCE


def test_the_error_becomes_smaller_and_the_matrix_stays_orthogonal(tmp_path: Path) -> None:
    rows, importance = sampled(open_source(models.tiny_llama(tmp_path / "m", tied=True)))
    done: list[int] = []
    q = learn.optimised(rows, importance, np.random.default_rng(0), 60, done.append)
    assert np.abs(q @ q.T - np.eye(len(q))).max() < 1e-12
    assert learn.expected_error(rows, importance, q) < 0.8 * learn.expected_error(rows, importance)
    assert sum(done) == 60


def test_the_gradient_is_that_of_the_error() -> None:
    random = np.random.default_rng(1)
    rows, importance = (random.normal(size=size).astype(np.float32) for size in ((20, 6), 20))
    importance = np.abs(importance)
    q, direction = np.linalg.qr(random.normal(size=(6, 6)))[0], random.normal(size=(6, 6))
    _, gradient = learn._gradient(rows, importance, q)
    ahead, behind = (learn._gradient(rows, importance, q + side * 1e-3 * direction)[0] for side in (1, -1))
    assert (gradient * direction).sum() == pytest.approx((ahead - behind) / 2e-3, rel=1e-3)


def test_the_error_is_what_int8_makes(tmp_path: Path) -> None:
    """What is made small is an estimate, of rounding as good as random: near what rounding does, over all layers."""
    source = open_source(models.tiny_llama(tmp_path / "m", tied=True, hidden=64))
    rows, importance = sampled(source)
    start = rotated(source, rotation_of(LEARNED, source), LEARNED)
    found = 0.0
    for read in forward.run(start, [cases.ids()]):
        if read.readers[0].split(".")[-2] not in ("attn_output", "ffn_down"):
            for weight in read.weights:
                y = read.x @ weight.T
                found += float(np.square(int8(read.x) @ int8(weight).T - y).sum() / np.square(y).sum())
    assert learn.expected_error(rows, importance) == pytest.approx(found, rel=0.2)


def int8(rows: forward.Floats) -> forward.Floats:
    scale = np.abs(rows).max(1, keepdims=True) / np.float32(127)
    found: forward.Floats = np.rint(rows / scale) * scale
    return found


def test_there_are_as_many_rows_as_memory_is_counted_for(tmp_path: Path) -> None:
    source = open_source(models.tiny_llama(tmp_path / "m", tied=True))
    windows = [cases.ids()] * 10
    start = rotated(source, rotation_of(LEARNED, source), LEARNED)
    rows, _ = learn.sampled(start, windows, (), np.random.default_rng(0), not_a_step)
    assert 0 < len(rows) <= learn.rows(source.config)


def test_the_same_call_gives_the_same_matrix_and_another_text_another(tmp_path: Path) -> None:
    source = open_source(models.tiny_llama(tmp_path / "m", tied=True))
    plan = make_plan(source, "t", tmp_path, [quant.scheme("w8a8")], rotate="learned")
    one, two = (prepared(plan).sim_source.rotation for _ in range(2))
    assert one == two and one["kind"] == "learned" and one["basis"].startswith("learned-")
    assert isinstance(plan.calibration, Dataset)
    windows = texts.windows(source, plan.calibration)[::-1]
    other = learn.learned(source, rotation_of(LEARNED, source), LEARNED, windows, (), not_a_step, not_a_step)
    assert f"learned-{other.digest}" != one["basis"]
