"""What the daemon has counted since it began: requests, refusals, tokens and times. Plain numbers, bounded in number.

``metrics`` writes them for Prometheus, ``board`` for the chat page.
"""

from __future__ import annotations

import bisect
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Optional

from .jobs import Durations

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_RATES = (0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 50.0, 75.0, 100.0, 200.0, 500.0, 1000.0)
_SHARE = 0.2  # that the latest answer has in a running mean
_OTHER = "other"
_JUMP_S = 2.0  # that a clock has to differ by: it is corrected by less all the time


class Distribution:
    """How many values were at most so much, as Prometheus' histograms have it."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self._counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect.bisect_left(self.bounds, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """Upper bounds, the last without end, and how many values were not above them."""
        found, below = [], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self._counts):
            below += count
            found.append((bound, float(below)))
        return found


class Figures:
    """Everything there is to count. ``paths``: those of the daemon's routes; requests for others count as one kind."""

    def __init__(self) -> None:
        self.paths: frozenset[str] = frozenset()
        self._began_at, self._began = time.monotonic(), time.time()
        self.requests: Counter[tuple[str, int]] = Counter()  # by path and status
        self.refusals: Counter[str] = Counter()  # by reason, which are the codes of errors
        self.answers: Counter[str] = Counter()  # by how they ended
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.first_token_s = Distribution(_SECONDS)  # from a request's arrival
        self.waiting_s = Distribution(_SECONDS)  # of these, before the model began with it
        self.answer_s = Distribution(_SECONDS)  # from arrival to the last token
        self.prefill_rate = Distribution(_RATES)  # tokens of a prompt per second
        self.decode_rate = Distribution(_RATES)
        self.mean_prefill: Optional[float] = None  # running means, of the latest answers
        self.mean_decode: Optional[float] = None

    @property
    def uptime_s(self) -> float:
        """A board without a battery begins in 1970, and its clock jumps when it hears of the time."""
        return time.monotonic() - self._began_at

    @property
    def began(self) -> float:
        """Seconds since 1970; the same each time as long as the clock does not jump."""
        now = time.time() - self.uptime_s
        if abs(now - self._began) > _JUMP_S:
            self._began = now
        return self._began

    def add_request(self, path: str, status: int, facts: Mapping[str, Any]) -> None:
        """One request that has ended; ``facts`` are those of its line in the log."""
        self.requests[path if path in self.paths else _OTHER, status] += 1
        if facts.get("error"):
            self.refusals[str(facts["error"])] += 1
        if not (facts.get("ended") or facts.get("completion_tokens")):
            return  # refused before there was anything of an answer, or none was asked for
        self.answers[str(facts.get("ended") or facts.get("error") or _OTHER)] += 1
        self.prompt_tokens += facts.get("prompt_tokens") or 0
        self.completion_tokens += facts.get("completion_tokens") or 0


class Timing:
    """The times of one answer, told by whoever reads it."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures
        self._began = time.monotonic()
        self._first: Optional[float] = None

    def first_token(self) -> None:
        if self._first is None:
            self._first = time.monotonic()

    def end(self, prompt: Optional[int], completion: int, durations: Optional[Durations]) -> dict[str, float]:
        """Count it; what a log says of it, which is nothing where no token came."""
        if self._first is None:
            return {}
        figures, first = self._figures, self._first - self._began
        told = {"first_token_s": round(first, 3)}
        figures.first_token_s.add(first)
        figures.answer_s.add(time.monotonic() - self._began)
        if durations is None:
            return told
        waited = max(first - durations.prompt_ns / 1e9, 0.0)
        figures.waiting_s.add(waited)
        told["waited_s"] = round(waited, 3)
        if prompt and durations.prompt_ns:
            rate = prompt * 1e9 / durations.prompt_ns
            figures.prefill_rate.add(rate)
            figures.mean_prefill = _mean(figures.mean_prefill, rate)
        if completion > 1 and durations.answer_ns:
            rate = (completion - 1) * 1e9 / durations.answer_ns
            figures.decode_rate.add(rate)
            figures.mean_decode = _mean(figures.mean_decode, rate)
            told["tokens_per_s"] = round(rate, 2)
        return told


def _mean(before: Optional[float], value: float) -> float:
    return value if before is None else before + _SHARE * (value - before)
