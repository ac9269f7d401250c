"""Which of the variants to take, and why, in a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rk3588 import rkllm
from rk3588.boards import BoardType
from rk3588.predict import Estimate, Prediction
from rkconvert.accuracy import Accuracy

from .cpu import OnCpu
from .variants import Variant

GIB = 1 << 30
_AS_FAST = 0.98  # of the fastest: nobody notices the difference, so that accuracy decides


@dataclass(frozen=True)
class Limits:
    """What the user asks for; None: nothing."""

    ram_gb: int
    min_tok_s: float | None
    max_kl: float


@dataclass(frozen=True)
class Row:
    """One variant. ``accuracy`` None: not measured. ``obstacle``: why rkllm-toolkit could not build it."""

    variant: Variant
    prediction: Prediction
    accuracy: Accuracy | None
    obstacle: str | None

    def fits(self, limits: Limits) -> bool:
        return self.prediction.memory.fits(limits.ram_gb)

    def misses(self, limits: Limits) -> list[str]:
        """What of the limits it does not keep."""
        found = []
        speed, least = self.prediction.decode_tok_s.value, limits.min_tok_s
        if self.obstacle:
            found.append(f"rkllm-toolkit would not build it: {self.obstacle}")
        if least is not None and speed < least:
            found.append(f"{number(speed)} tok/s are fewer than {least:g}")
        if self.accuracy and self.accuracy.kl > limits.max_kl:
            found.append(f"KL {self.accuracy.kl:.4f} is more than {limits.max_kl:g}")
        return found


def best(rows: Sequence[Row], limits: Limits) -> Row | None:
    """The fastest that keeps all limits; of those as fast, the most accurate."""
    able = [row for row in rows if row.fits(limits) and not row.misses(limits)]
    if not able:
        return None
    fastest = max(row.prediction.decode_tok_s.value for row in able)
    as_fast = [row for row in able if row.prediction.decode_tok_s.value >= _AS_FAST * fastest]
    return min(as_fast, key=lambda row: row.accuracy.kl if row.accuracy else 0.0)


def in_doubt(row: Row, limits: Limits) -> bool:
    """Whether the KL that was measured may lie on the other side of the limit."""
    bounds_of_kl = row.accuracy.intervals.get("kl") if row.accuracy else None
    return bounds_of_kl is not None and bounds_of_kl[0] < limits.max_kl < bounds_of_kl[1]


def nearest_miss(rows: Sequence[Row], limits: Limits) -> Row | None:
    """Of those that fit: the one that misses fewest limits, and then the most accurate, or the fastest."""
    able = [row for row in rows if row.fits(limits)]
    return min(
        able,
        key=lambda row: (
            len(row.misses(limits)),
            row.accuracy.kl if row.accuracy else 0.0,
            -row.prediction.decode_tok_s.value,
        ),
        default=None,
    )


def sentence(rows: Sequence[Row], cpu: OnCpu | None, limits: Limits, board: BoardType) -> str:
    """The one line of advice."""
    where = f"{'an' if board.name[0] in 'AEIO' else 'a'} {board.name} with {limits.ram_gb} GB"
    chosen = best(rows, limits)
    if chosen:
        other = f"about {bounds(cpu.decode_tok_s)}" if cpu else "not known"
        return f"take {chosen.variant.options} for {where}: {_told(chosen)}; llama.cpp with 4 bits on its CPU: {other}"
    missed = nearest_miss(rows, limits)
    if missed is None:
        least = min(row.prediction.memory.total for row in rows) + rkllm.SYSTEM_BYTES
        return f"nothing fits {where}: the smallest needs {least / GIB:.1f} GB of RAM"
    reasons = " and ".join(missed.misses(limits))
    return f"nothing keeps all limits on {where}: {missed.variant.options} comes nearest, but {reasons}"


def _told(row: Row) -> str:
    p = row.prediction
    need = (p.memory.total + rkllm.SYSTEM_BYTES) / GIB
    told = f"about {bounds(p.decode_tok_s)} tok/s, {need:.1f} GB of RAM"
    if row.accuracy is None:
        return told + "; its accuracy was not measured"
    found = row.accuracy
    bounds_of_kl = found.intervals.get("kl")
    error = f" ± {(bounds_of_kl[1] - bounds_of_kl[0]) / 2:.4f}" if bounds_of_kl else ""
    return f"{told}; {found.top1:.1%} of next tokens are {found.reference}'s, KL {found.kl:.4f}{error}"


def bounds(of: Estimate) -> str:
    return f"{number(of.value)} ({number(of.low)}–{number(of.high)})"


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
