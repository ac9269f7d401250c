"""Two runs side by side: the ratio of each test, and whether it can be chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .results import Report, Row

# Student's t, two-sided 95 %, by degrees of freedom; beyond, the normal distribution's.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
_T_BEYOND = 1.96
_SAME = ("model", "backend", "threads", "cpu", "board")
FASTER, SLOWER, NOISE, UNKNOWN = "faster", "slower", "within the noise", "one run each: noise not known"


@dataclass(frozen=True)
class Compared:
    """``ratio``: of the new speed to the old; ``low`` and ``high``: where it lies with 95 % confidence."""

    test: str
    old: tuple[float, float]
    new: tuple[float, float]
    ratio: float
    low: float
    high: float
    verdict: str


def compare(new: Report, old: Report) -> list[Compared]:
    """Every test that both have."""
    there = {row.test: row for row in old.rows}
    found = [_compared(row, there[row.test]) for row in new.rows if row.test in there]
    before = {each["test"]: each["rate"] for each in old.clients}
    for each in new.clients:  # of several clients there is one figure, of all of them
        rate = before.get(each["test"])
        if rate:
            ratio = each["rate"] / rate
            found.append(Compared(each["test"], (rate, 0.0), (each["rate"], 0.0), ratio, 0.0, math.inf, UNKNOWN))
    return found


def differences(new: Report, old: Report) -> list[str]:
    """What else than the speed may differ, and is not the same: such runs are no like for like."""
    pairs = [(name, old.about.get(name), new.about.get(name)) for name in _SAME]
    return [f"{name} was {before}, is {now}" for name, before, now in pairs if before != now]


def _compared(new: Row, old: Row) -> Compared:
    before, now = old.rate, new.rate
    ratio = now[0] / before[0]
    counts = (len(new.samples), len(old.samples))
    if min(counts) < 2:
        return Compared(new.test, before, now, ratio, 0.0, math.inf, UNKNOWN)
    # Welch: the logarithm of each mean has about the variance of the mean, relative to its square.
    parts = [(deviation / mean) ** 2 / n for (mean, deviation), n in zip((now, before), counts)]
    width = student(parts, counts) * math.sqrt(sum(parts))
    low, high = ratio * math.exp(-width), ratio * math.exp(width)
    verdict = FASTER if low > 1 else SLOWER if high < 1 else NOISE
    return Compared(new.test, before, now, ratio, low, high, verdict)


def student(parts: Sequence[float], counts: Sequence[int]) -> float:
    """The factor for 95 %, by Welch's and Satterthwaite's degrees of freedom."""
    below = sum(part**2 / (n - 1) for part, n in zip(parts, counts))
    freedom = sum(parts) ** 2 / below if below > 0 else float(sum(counts) - len(counts))
    number = max(1, int(freedom))
    return _T[number - 1] if number <= len(_T) else _T_BEYOND
