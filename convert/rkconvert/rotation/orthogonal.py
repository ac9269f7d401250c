"""Orthogonal matrices, to multiply weights with."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Orthogonal:
    """Q = diag(signs) · (factors[0] ⊗ factors[1] ⊗ …). Along an axis longer than Q, each ``size`` elements are turned
    by themselves: so one matrix turns all heads of a layer."""

    factors: tuple[Matrix, ...]
    signs: Matrix | None = None  # 1 and -1, a vector

    @classmethod
    def dense(cls, matrix: npt.ArrayLike) -> Orthogonal:
        """Any matrix (n, n), which is to be orthogonal."""
        return cls((np.ascontiguousarray(matrix, np.float64),))

    @property
    def size(self) -> int:
        return prod(map(len, self.factors))

    @property
    def matrix(self) -> Matrix:
        """All of it."""
        return self.on_columns(np.eye(self.size))

    def on_columns(self, x: Matrix) -> Matrix:
        """x · Q."""
        found = x.reshape(-1, self.size)
        if self.signs is not None:
            found = found * self.signs
        behind = self.size
        for factor in self.factors:
            behind //= len(factor)
            if behind == 1:
                found = found.reshape(-1, len(factor)) @ factor
            else:
                found = factor.T @ found.reshape(-1, len(factor), behind)
        return found.reshape(x.shape)

    def on_rows(self, x: Matrix) -> Matrix:
        """Qᵀ · x."""
        found: Matrix = self.on_columns(np.ascontiguousarray(x.T)).T
        return found

