"""``--rotate learned``: R1 that is optimised on calibration texts, by Cayley steps as in SpinQuant (arXiv:2405.16406).

What is made small is not the loss of the whole model but the error that int8 is expected to make in the layers that
read from the residual stream, relative to what they put out. A row of activations or weights x is stored in steps of
max|x| / 127, so its error is as the square of its largest element; its length no rotation changes. The sum over rows is
cheap, and needs the model once: docs/rotation.md compares it with learning end to end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from rkconvert.adapters.lora import Lora
from rkconvert.architectures.model import ModelConfig
from rkconvert.sources.base import Source

from . import forward
from .options import Rotate
from .orthogonal import Matrix, Orthogonal
from .rotate import Rotation, rotated

STEPS = 100
_RATE = 0.1
_MOMENTUM = 0.9
ROWS_A_STEP = 4096
_ACTIVATIONS, _WEIGHTS = 128, 256  # rows that are kept of what a layer reads, and of its weights
Floats = npt.NDArray[np.float32]
Step = Callable[[int], None]


def learned(
    source: Source,
    start: Rotation,
    rotate: Rotate,
    windows: forward.Windows,
    merged: Sequence[Lora],
    read: Step,
    step: Step,
) -> Rotation:
    """``start`` with a better R1. ``read`` is told the bytes of each tensor read, ``step`` of each step done."""
    assert start.residual is not None
    random = np.random.default_rng(rotate.seed)
    some, importance = sampled(rotated(source, start, rotate), windows, merged, random, read)
    found = optimised(some, importance, random, step=step)
    return replace(start, residual=Orthogonal.dense(start.residual.matrix @ found))


def sampled(
    turned: Source, windows: forward.Windows, merged: Sequence[Lora], random: np.random.Generator, read: Step
) -> tuple[Floats, Floats]:
    """Rows (n, hidden) of a rotated model that are quantised in the basis of its residual stream, and what the squared
    largest element of each adds to the relative error of a layer."""
    found: list[Floats] = []
    importance: list[Floats] = []
    for one in forward.run(turned, windows, merged, read):
        if one.readers[0].split(".")[-2] in ("attn_output", "ffn_down"):
            continue
        x = _some(one.x, _ACTIVATIONS, random)
        of_activations = 0.0
        for weight in one.weights:
            put_out = float(np.square(x @ weight.T).sum()) / len(x) or 1.0
            of_activations += float(np.square(weight).sum()) / put_out
            some = _some(weight, _WEIGHTS, random)
            per_row = float(np.square(x).sum()) / len(x) / put_out * len(weight) / len(some)
            found.append(some)
            importance.append(np.full(len(some), per_row, np.float32))
        found.append(x)
        importance.append(np.full(len(x), of_activations / len(x), np.float32))
    return np.concatenate(found), np.concatenate(importance)


def rows(config: ModelConfig) -> int:
    """How many ``sampled`` gives at most."""
    per_layer = 2 * _ACTIVATIONS + (4 + config.gated) * _WEIGHTS
    return config.layers * per_layer + _ACTIVATIONS + _WEIGHTS


def expected_error(rows: Floats, importance: Floats, q: Matrix | None = None) -> float:
    """Of int8, when ``rows`` are turned by ``q``: relative and squared, the sum over all layers."""
    turned = rows if q is None else rows @ q.astype(np.float32)
    return float(importance @ np.square(np.abs(turned).max(1))) / 127**2 / 12


def optimised(
    rows: Floats, importance: Floats, random: np.random.Generator, steps: int = STEPS, step: Step = lambda _: None
) -> Matrix:
    """An orthogonal matrix that makes the error of ``rows`` small, found from none at all by stochastic descent."""
    q = np.eye(rows.shape[1])
    moment = np.zeros_like(q)
    for number in range(steps):
        some = random.choice(len(rows), min(ROWS_A_STEP, len(rows)), replace=False)
        loss, gradient = _gradient(rows[some], importance[some], q)
        tangent = gradient @ q.T
        moment = _MOMENTUM * moment + (tangent - tangent.T) / loss
        q = _cayley(q, moment * (_RATE * (1 - number / steps)))
        step(1)
    return q


def _gradient(rows: Floats, importance: Floats, q: Matrix) -> tuple[float, Matrix]:
    """Of the sum of importance · max|row · q|²: only the column of the largest element has a part in it."""
    turned = rows @ q.astype(np.float32)
    at = np.abs(turned).argmax(1)
    largest = turned[np.arange(len(rows)), at]
    found = np.zeros_like(q)
    np.add.at(found.T, at, (2 * importance * largest)[:, None] * rows)
    return float(importance @ np.square(largest)), found


def _cayley(q: Matrix, skew: Matrix) -> Matrix:
    """A step along a skew matrix that ends at an orthogonal one again."""
    identity = np.eye(len(q))
    return np.asarray(np.linalg.solve(identity + skew / 2, (identity - skew / 2) @ q), np.float64)


def _some(rows: Floats, most: int, random: np.random.Generator) -> Floats:
    return rows if len(rows) <= most else rows[random.choice(len(rows), most, replace=False)]
