"""The quantisation schemes an RK3588 runs, and the NumPy reference quantiser that defines them.

Weights are symmetric int8 in [-127, 127]: ``q = rint(w / scale)``, ``scale = max|w| / 127`` in float32, one
scale per output channel or per group of ``group_size`` inputs along K (the last group may be short). Rounding is
half to even. A group whose scale would not be a normal float32 (all zeros, or smaller than 1.5e-36) quantises to
zeros with scale 0. Activations are quantised the same way at run time, one scale per token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Q_MAX = 127
MIN_SCALE = 1.17549435e-38  # FLT_MIN: below it float32 loses precision, and w / scale with it


@dataclass(frozen=True)
class Scheme:
    """How the linear layers of a model are stored. ``group_size`` 0 means one group: the whole row."""

    name: str
    group_size: int = 0
    quantised: bool = True

    def groups(self, k: int) -> int:
        """Number of scales in a row of ``k`` inputs."""
        return -(-k // self.group_size) if self.group_size else 1

    def short_group(self, k: int) -> int:
        """Length of the last group where ``group_size`` does not divide ``k``, else 0."""
        return k % self.group_size if self.group_size else 0

    def weight_bytes(self, n: int, k: int) -> int:
        """Bytes of an (n, k) weight with its scales."""
        if self.quantised:
            return n * k + 4 * n * self.groups(k)
        return n * k * (2 if self.name == "fp16" else 4)


SCHEMES: dict[str, Scheme] = {
    s.name: s
    for s in (
        Scheme("w8a8"),
        Scheme("w8a8_g128", 128),
        Scheme("w8a8_g256", 256),
        Scheme("w8a8_g512", 512),
        Scheme("fp16", quantised=False),
        Scheme("fp32", quantised=False),
    )
}


def mixed(spec: Scheme) -> tuple[Scheme, Scheme]:
    """The two that a hybrid of ``spec`` is made of: without groups and with; those of 128 where it has none."""
    return SCHEMES["w8a8"], spec if spec.group_size else SCHEMES["w8a8_g128"]


def scheme(name: str) -> Scheme:
    """The scheme called ``name``; UsageError names the ones there are."""
    try:
        return SCHEMES[name]
    except KeyError:
        raise UsageError(f"unknown dtype {name!r}: choose one of {', '.join(SCHEMES)}") from None


def quantise(weight: npt.NDArray[np.float32], spec: Scheme) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Reference quantiser: float32 (N, K) to int8 (N, K) and float32 scales (N, groups).

    Written to be read; ``rk3588.hostlib.quantise`` is the fast path and equals it bit for bit.
    """
    import numpy as np

    n, k = weight.shape
    step = spec.group_size or k
    q = np.zeros((n, k), np.int8)
    scales = np.zeros((n, spec.groups(k)), np.float32)
    for g, start in enumerate(range(0, k, step)):
        block = weight[:, start : start + step]
        scale = np.abs(block).max(axis=1) / np.float32(Q_MAX)
        scale[scale < MIN_SCALE] = 0
        safe = np.where(scale == 0, np.float32(1), scale)[:, None]
        rounded = np.clip(np.rint(block / safe), -Q_MAX, Q_MAX)
        q[:, start : start + step] = np.where(scale[:, None] == 0, 0, rounded).astype(np.int8)
        scales[:, g] = scale
    return q, scales


def dequantise(q: npt.NDArray[np.int8], scales: npt.NDArray[np.float32], spec: Scheme) -> npt.NDArray[np.float32]:
    """Inverse of ``quantise`` up to rounding: float32 (N, K); the error is at most scale / 2 per weight."""
    import numpy as np

    k = q.shape[1]
    per_weight = np.repeat(scales, spec.group_size or k, axis=1)[:, :k]
    return np.asarray(q.astype(np.float32) * per_weight, np.float32)
