"""Means and percentiles over the tokens of a text, each with its 95 % interval.

Tokens of one window are alike, so they are no independent draws: the windows are. The interval of a mean is Student's,
with the cluster-robust standard error over windows (Liang and Zeger 1986; Cameron and Miller 2015, with as many degrees
of freedom as there are windows, less one). That of a percentile is Woodruff's (1952): the interval of the share of
tokens below it, read back from the tokens themselves. Of one window there is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

LEVEL = 0.95
Array = npt.NDArray[np.float64]
Interval = tuple[float, float]


def student(freedom: int, level: float = LEVEL) -> float:
    """How many standard errors an interval reaches to each side: Abramowitz and Stegun 26.7.5, exact for 1 and 2."""
    p = (1 + level) / 2
    if freedom == 1:
        return math.tan(math.pi * (p - 0.5))
    if freedom == 2:
        return (2 * p - 1) * math.sqrt(2 / (4 * p * (1 - p)))
    x = NormalDist().inv_cdf(p)
    terms = (
        (x**3 + x) / 4,
        (5 * x**5 + 16 * x**3 + 3 * x) / 96,
        (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384,
        (79 * x**9 + 776 * x**7 + 1482 * x**5 - 1920 * x**3 - 945 * x) / 92160,
    )
    return x + math.fsum(term / math.pow(freedom, power) for power, term in enumerate(terms, 1))


def mean(windows: Sequence[Array]) -> float:
    return float(np.concatenate(windows).mean())


def mean_interval(windows: Sequence[Array]) -> Interval | None:
    """Of the mean over all values; ``windows`` has each window's."""
    count = len(windows)
    if count < 2:
        return None
    sizes = np.array([len(values) for values in windows], np.float64)
    sums = np.array([values.sum() for values in windows])
    middle = sums.sum() / sizes.sum()
    error = math.sqrt(count / (count - 1) * ((sums - sizes * middle) ** 2).sum()) / sizes.sum()
    reach = student(count - 1) * error
    return float(middle - reach), float(middle + reach)


def quantile(windows: Sequence[Array], share: float) -> float:
    return float(np.quantile(np.concatenate(windows), share))


def quantile_interval(windows: Sequence[Array], share: float) -> Interval | None:
    value = quantile(windows, share)
    below = mean_interval([(values <= value).astype(np.float64) for values in windows])
    if below is None:
        return None
    values = np.concatenate(windows)
    low, high = (float(np.quantile(values, min(max(bound, 0.0), 1.0))) for bound in below)
    return min(low, value), max(high, value)


def through(function: Callable[[float], float], bounds: Interval | None) -> Interval | None:
    """An interval of a value, made one of ``function`` of it, which grows."""
    return None if bounds is None else (function(bounds[0]), function(bounds[1]))
