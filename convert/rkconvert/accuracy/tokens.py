"""What is found out of each token from the logits of the reference and of a model: in float64, some rows at a time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rk3588.errors import BundleError

Array = npt.NDArray[np.float64]
Logits = npt.NDArray[np.float32]
_AT_ONCE = 1 << 18  # logits, which then stay in the processor's cache


class Tokens(NamedTuple):
    """One window's scored tokens."""

    loss: Array  # -ln of the probability that the model gives to the token that came
    reference_loss: Array  # the same of the reference
    kl: Array  # Kullback-Leibler divergence of the model from the reference, in nats
    same: Array  # 1 where both have the same most likely token, else 0


def compared(truth: Logits, found: Logits, came: Sequence[int]) -> Tokens:
    """Rows of logits of the reference and of a model, each with the token that came next."""
    count, vocabulary = truth.shape
    out, ids = np.empty((4, count)), np.asarray(came)
    rows = max(1, _AT_ONCE // vocabulary)

    def some(start: int) -> None:
        part = slice(start, start + rows)
        out[:, part] = _rows(truth[part], found[part], ids[part])

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(some, range(0, count, rows)))
    if not np.isfinite(out).all():
        raise BundleError(
            "the model computes logits that are no finite numbers, so there is nothing to compare: rk3588 bundle "
            "verify tells whether its file is whole"
        )
    return Tokens(*out)


def _rows(truth: Logits, found: Logits, came: npt.NDArray[np.int64]) -> Array:
    at = np.arange(len(truth))
    same = truth.argmax(axis=1) == found.argmax(axis=1)
    p, gap = truth.astype(np.float64), found.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):  # what is not finite is told above
        p -= p.max(axis=1, keepdims=True)
        gap -= gap.max(axis=1, keepdims=True)
        own, reference = gap[at, came], p[at, came]
        own_sum = np.log(np.exp(gap).sum(axis=1))
        np.subtract(p, gap, out=gap)
        np.exp(p, out=p)
        total = p.sum(axis=1)
        # sum of p (ln p - ln q), with what both are normalised by taken out of the sum.
        kl = np.einsum("ij,ij->i", p, gap) / total - np.log(total) + own_sum
    # Rounding alone takes it below zero, by less than 1e-15.
    return np.stack([own_sum - own, np.log(total) - reference, np.maximum(kl, 0.0), same.astype(np.float64)])
