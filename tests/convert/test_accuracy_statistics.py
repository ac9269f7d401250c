"""What is computed out of logits for ``rkconvert accuracy``: each figure beside its formula, each interval beside what
it promises."""

from __future__ import annotations

import numpy as np
import pytest

from rk3588.errors import BundleError
from rkconvert.accuracy.result import summary
from rkconvert.accuracy.statistics import mean_interval, quantile_interval, student
from rkconvert.accuracy.tokens import compared


@pytest.mark.parametrize(
    ("freedom", "known"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042), (1000, 1.962)]
)
def test_students_quantiles_are_those_of_the_tables(freedom: int, known: float) -> None:
    assert student(freedom) == pytest.approx(known, rel=2e-3)


def test_of_windows_of_one_token_it_is_students_interval() -> None:
    """Without anything that is alike within a window, the standard error is the textbook's."""
    values = np.random.default_rng(1).normal(3, 2, 25)
    low, high = mean_interval([values[i : i + 1] for i in range(25)]) or (0.0, 0.0)
    assert (low + high) / 2 == pytest.approx(values.mean())
    assert (high - low) / 2 == pytest.approx(student(24) * values.std(ddof=1) / 5)
    assert mean_interval([values]) is None and quantile_interval([values], 0.5) is None


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Tokens of a window share a part of their value, so that intervals over tokens would be far too short."""
    rng, rounds, windows, tokens = np.random.default_rng(7), 400, 12, 64
    held = {"mean": 0, "median": 0, "p90": 0, "naive": 0}
    truth = {"median": 0.0, "p90": 1.2816 * np.sqrt(1.25)}
    for _ in range(rounds):
        values = rng.normal(size=(windows, 1)) + 0.5 * rng.normal(size=(windows, tokens))
        parts = list(values)
        low, high = mean_interval(parts) or (0.0, 0.0)
        held["mean"] += low <= 0 <= high
        naive = 1.96 * values.std() / np.sqrt(values.size)
        held["naive"] += abs(values.mean()) <= naive
        for name, share in (("median", 0.5), ("p90", 0.9)):
            low, high = quantile_interval(parts, share) or (0.0, 0.0)
            held[name] += low <= truth[name] <= high
    assert 0.92 <= held["mean"] / rounds <= 0.98
    assert held["median"] / rounds >= 0.90 and held["p90"] / rounds >= 0.85
    assert held["naive"] / rounds < 0.5


def test_each_figure_is_its_formula() -> None:
    rng = np.random.default_rng(3)
    truth = rng.normal(0, 4, (50, 700)).astype(np.float32)
    found = (truth + rng.normal(0, 0.5, truth.shape)).astype(np.float32) + np.float32(70)  # a shift changes nothing
    came = rng.integers(0, 700, 50).tolist()
    p, q = (np.exp(x.astype(np.float64)) / np.exp(x.astype(np.float64)).sum(1, keepdims=True) for x in (truth, found))
    own, reference = q[np.arange(50), came], p[np.arange(50), came]
    kl = (p * np.log(p / q)).sum(1)
    parts = [compared(truth[i : i + 25], found[i : i + 25], came[i : i + 25]) for i in (0, 25)]
    result = summary(parts, 52, "x")
    np.testing.assert_allclose(np.concatenate([part.kl for part in parts]), kl, rtol=1e-9)
    assert result.perplexity == pytest.approx(np.exp(-np.log(own).mean()))
    assert result.reference_perplexity == pytest.approx(np.exp(-np.log(reference).mean()))
    assert result.perplexity_ratio == pytest.approx(result.perplexity / result.reference_perplexity)
    np.testing.assert_allclose([result.kl, result.kl_max], [kl.mean(), kl.max()])
    percentiles = [result.kl_median, result.kl_p90, result.kl_p99, result.kl_p99_9]
    np.testing.assert_allclose(percentiles, np.quantile(kl, [0.5, 0.9, 0.99, 0.999]))
    assert result.top1 == (truth.argmax(1) == found.argmax(1)).mean()
    assert result.p_change_mean == pytest.approx((own - reference).mean())
    assert result.p_change_rms == pytest.approx(np.sqrt(((own - reference) ** 2).mean()))
    for name, bounds in result.intervals.items():
        assert bounds and bounds[0] <= getattr(result, name) <= bounds[1], name
    told = result.as_dict()
    assert (told["divergence"], told["agreement"], told["scored"], told["windows"]) == (result.kl, result.top1, 50, 2)
    assert "greedy" not in told and "layers" not in told and "choices" not in told


def test_the_same_logits_diverge_by_nothing_and_near_ones_by_the_square() -> None:
    """Far below what float32 sums would drown."""
    rng = np.random.default_rng(5)
    truth = rng.normal(0, 5, (20, 5000)).astype(np.float32)
    assert (compared(truth, truth, [0] * 20).kl < 1e-14).all()
    near = (truth.astype(np.float64) + rng.normal(0, 1e-4, truth.shape)).astype(np.float32)
    p = np.exp(truth.astype(np.float64))
    p /= p.sum(1, keepdims=True)
    gap = near.astype(np.float64) - truth
    variance = (p * gap**2).sum(1) - (p * gap).sum(1) ** 2
    np.testing.assert_allclose(compared(truth, near, [0] * 20).kl, variance / 2, rtol=1e-2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_are_told(bad: float) -> None:
    truth = np.zeros((4, 10), np.float32)
    found = truth.copy()
    found[2, 3] = bad
    with pytest.raises(BundleError, match="no finite numbers"):
        compared(truth, found, [3] * 4)


def test_a_perplexity_beyond_floats_is_still_a_number() -> None:
    truth, found = np.zeros((2, 8), np.float32), np.zeros((2, 8), np.float32)
    found[:, 0] = 5000
    result = summary([compared(truth, found, [3, 4])] * 2, 4, "x")
    assert 1e300 < result.perplexity < np.inf and result.kl > 4000
