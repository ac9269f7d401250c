"""``--smooth``: outliers of activations go into weights, channel by channel, after SmoothQuant (arXiv:2211.10438).

A channel of what layers read is divided by s, their weights for it multiplied: the model computes the same. Who makes
the channel divides: a norm by its gain (for Q, K and V; for gate and up), V by its rows (for O), up by its rows (for
down). s = max|x|^alpha / max|w|^(1 - alpha), over calibration texts and over all readers.

Of a rotated model, up and down alone are smoothed: in all other places the rotation has spread the outliers already.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from rkconvert.adapters.lora import Lora
from rkconvert.sources.base import Source

from . import forward
from .change import Change
from .options import Smooth
from .orthogonal import Matrix

_LEAST = 1e-5  # of the largest channel: none is taken for smaller, so that no factor becomes extreme


def smoothed(
    source: Source,
    smooth: Smooth,
    windows: forward.Windows,
    merged: Sequence[Lora] = (),
    step: Callable[[int], None] = lambda _: None,
) -> Source:
    """``source`` as it is to be stored, with a ``Change`` for each tensor that smoothing scales."""
    changes = dict(source.changes)
    for read in forward.run(source, windows, merged, step, head=False):
        block, first = read.readers[0].rsplit(".", 2)[0], read.readers[0].split(".")[-2]
        maker = _maker(source, first)
        if maker is None:
            continue
        largest = np.abs(read.x).max(0)
        of_weights = np.max([np.abs(w).max(0) for w in read.weights], axis=0)
        if maker == "attn_v":  # several heads of Q share one of V
            largest, of_weights = (_by_kv_head(source, each) for each in (largest, of_weights))
        factors = _factors(largest, of_weights, smooth.alpha)
        _divide(changes, source, f"{block}.{maker}", factors)
        if maker == "attn_v":
            factors = _for_all_heads(source, factors)
        for name in read.readers:
            _multiply(changes, name, factors)
    return replace(source, changes=changes, smoothed=True)


def _maker(source: Source, reader: str) -> str | None:
    """What makes the channels that a kind of layer reads; None: nothing that can divide them."""
    if reader == "ffn_down":  # without a gate there is an activation between
        return "ffn_up" if source.config.gated else None
    if source.rotation:
        return None
    return {"attn_q": "attn_norm", "attn_output": "attn_v"}.get(reader, "ffn_norm")


def _factors(largest: npt.NDArray[np.float32], of_weights: npt.NDArray[np.float32], alpha: float) -> Matrix:
    """Their geometric mean is 1. Where a channel is nothing, or nobody reads it, it stays."""
    used = (largest > 0) & (of_weights > 0)
    found = np.ones(len(largest))
    if used.any():
        x, w = (np.maximum(each[used].astype(np.float64), _LEAST * each.max()) for each in (largest, of_weights))
        found[used] = x**alpha / w ** (1 - alpha)
        found[used] /= np.exp(np.log(found[used]).mean())
    return found


def _by_kv_head(source: Source, largest: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    config = source.config
    found: npt.NDArray[np.float32] = largest.reshape(config.kv_heads, -1, config.head_dim).max(1).reshape(-1)
    return found


def _for_all_heads(source: Source, factors: Matrix) -> Matrix:
    config = source.config
    heads = factors.reshape(config.kv_heads, 1, config.head_dim)
    return np.repeat(heads, config.heads // config.kv_heads, axis=1).reshape(-1)


def _divide(changes: dict[str, Change], source: Source, maker: str, factors: Matrix) -> None:
    """A norm's gain and bias, or a layer's rows and bias."""
    shapes = source.config.tensors()
    for name in (f"{maker}.weight", f"{maker}.bias"):
        if name not in shapes:
            continue
        change = changes.get(name, Change())
        assert change.rows is None and change.constant is None  # _maker leaves these out
        if len(shapes[name]) == 2:
            changes[name] = replace(change, row_scale=1 / factors)
        else:
            changes[name] = replace(change, scale=1 / factors)


def _multiply(changes: dict[str, Change], name: str, factors: Matrix) -> None:
    change = changes.get(name, Change())
    assert change.scale is None and change.columns is None
    changes[name] = replace(change, scale=factors)
