"""What was measured of a bundle, as a dictionary of which it stands in manifests and in ``--json``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from .statistics import Interval, mean, mean_interval, quantile, quantile_interval, through
from .tokens import Tokens

_PERCENTILES = {"kl_median": 0.5, "kl_p90": 0.9, "kl_p99": 0.99, "kl_p99_9": 0.999}


@dataclass(frozen=True)
class Accuracy:
    """Over all tokens that were scored. docs/accuracy.md has the formulas."""

    perplexity: float
    reference_perplexity: float
    perplexity_ratio: float
    kl: float  # mean divergence of the reference from this bundle, in nats
    kl_median: float
    kl_p90: float
    kl_p99: float
    kl_p99_9: float
    kl_max: float
    top1: float  # share of tokens with the same most likely one
    p_change_mean: float  # of the probability of the token that came
    p_change_rms: float
    intervals: dict[str, Interval | None]  # 95 %, by the name of what they are of; None where there is one window
    tokens: int  # that were read
    scored: int
    windows: int
    text: str  # the name of what was read
    reference: str = "fp32"
    act_scale: str = "token"
    greedy: dict[str, Any] | None = None
    layers: dict[str, Any] | None = None
    choices: list[dict[str, Any]] = field(default_factory=list)

    @property
    def divergence(self) -> float:
        return self.kl

    @property
    def agreement(self) -> float:
        return self.top1

    def as_dict(self) -> dict[str, Any]:
        """Without what was not measured. ``divergence`` and ``agreement``: what ``kl`` and ``top1`` were called."""
        own = {key: value for key, value in asdict(self).items() if value not in (None, [])}
        own["intervals"] = {name: list(bounds) for name, bounds in self.intervals.items() if bounds}
        return {**own, "divergence": self.kl, "agreement": self.top1}


def _exp(x: float) -> float:
    """Of a model so broken that its perplexity is beyond what a float holds, the largest that is told."""
    return math.exp(min(x, 700.0))


def summary(parts: Sequence[Tokens], tokens: int, text: str, **known: Any) -> Accuracy:
    """Of all windows."""
    loss, reference_loss, kl, same = (list(values) for values in zip(*parts))
    ratio = [a - b for a, b in zip(loss, reference_loss)]
    change = [np.exp(-a) - np.exp(-b) for a, b in zip(loss, reference_loss)]
    squares = [values**2 for values in change]
    top1 = mean_interval(same)
    quantiles: dict[str, Any] = {name: quantile(kl, share) for name, share in _PERCENTILES.items()}
    return Accuracy(
        perplexity=_exp(mean(loss)),
        reference_perplexity=_exp(mean(reference_loss)),
        perplexity_ratio=_exp(mean(ratio)),
        kl=mean(kl),
        kl_max=max(float(values.max()) for values in kl),
        top1=mean(same),
        p_change_mean=mean(change),
        p_change_rms=math.sqrt(mean(squares)),
        intervals={
            "perplexity": through(_exp, mean_interval(loss)),
            "reference_perplexity": through(_exp, mean_interval(reference_loss)),
            "perplexity_ratio": through(_exp, mean_interval(ratio)),
            "kl": through(lambda x: max(x, 0.0), mean_interval(kl)),
            **{name: quantile_interval(kl, share) for name, share in _PERCENTILES.items()},
            "top1": through(lambda x: min(max(x, 0.0), 1.0), top1),
            "p_change_mean": mean_interval(change),
            "p_change_rms": through(lambda x: math.sqrt(max(x, 0.0)), mean_interval(squares)),
        },
        tokens=tokens,
        scored=sum(map(len, kl)),
        windows=len(parts),
        text=text,
        **quantiles,
        **known,
    )
