"""What each layer loses by itself: its signal-to-noise ratio, given the input that the reference's layer has.

Of a token, with the layer's input x, and outputs y of the reference and z of the bundle: 10 log10(|y-x|^2 / |z-y|^2)
decibels, the mean of which over tokens is the layer's. What passes it by on the residual stream is no part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rk3588.hostlib import SimModel

from .statistics import Interval, mean, mean_interval

PIECES, TOKENS = 4, 64
_MOST_DB = 150.0  # about what float32 itself has
_OTHER_BASIS = 0.1  # of the embeddings' size: what quantised ones differ by is far less
_WORST = 3
Array = npt.NDArray[np.float64]


def same_basis(reference: SimModel, model: SimModel, ids: list[int]) -> bool:
    """Whether hidden states mean the same in both: those of a rotated model do not."""
    if (reference.info.n_layers, reference.info.hidden) != (model.info.n_layers, model.info.hidden):
        return False
    truth, found = reference.embed(ids), model.embed(ids)
    return float(np.linalg.norm(found - truth)) <= _OTHER_BASIS * float(np.linalg.norm(truth))


def ratios(
    reference: SimModel, models: Sequence[SimModel], pieces: Sequence[list[int]], step: Callable[[int, int], None]
) -> list[list[list[Array]]]:
    """Decibels of each token, by model, layer and piece."""
    count = reference.info.n_layers
    found: list[list[list[Array]]] = [[[] for _ in range(count)] for _ in models]
    for number, ids in enumerate(pieces):
        x = reference.embed(ids)
        for index in range(count):
            step(number * count + index, len(pieces) * count)
            y = reference.layer(index, x)
            for own, model in zip(found, models):
                own[index].append(_decibels(x, y, model.layer(index, x)))
            x = y
    return found


def _decibels(x: npt.NDArray[np.float32], y: npt.NDArray[np.float32], z: npt.NDArray[np.float32]) -> Array:
    signal, noise = (((a.astype(np.float64) - b) ** 2).sum(axis=1) for a, b in ((y, x), (z, y)))
    least = np.maximum(signal, 1e-300) * 10 ** (-_MOST_DB / 10)
    return np.asarray(10 * np.log10(np.maximum(signal, 1e-300) / np.maximum(noise, least)), np.float64)


def summary(found: Sequence[Sequence[Array]]) -> dict[str, Any]:
    """Of one model: each layer's, and the worst."""
    values = [mean(pieces) for pieces in found]
    bounds = [mean_interval(pieces) for pieces in found]
    worst = sorted(range(len(values)), key=lambda index: values[index])[:_WORST]
    return {
        "snr_db": values,
        "worst": [{"layer": i, "snr_db": values[i], **_named(bounds[i])} for i in worst],
        "intervals": [list(b) for b in bounds if b],
        "tokens": sum(map(len, found[0])),
    }


def _named(bounds: Interval | None) -> dict[str, Any]:
    return {"interval": list(bounds)} if bounds else {}
