"""What becomes of one tensor when weights are turned: some matrices to multiply it with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .orthogonal import Matrix, Orthogonal

_CHUNK = 1 << 20  # elements at a time


@dataclass(frozen=True, eq=False)
class Change:
    """A matrix W (N, K) becomes ``rowsᵀ · diag(row_scale) · W · diag(scale) · columns``, in float64, and a vector v
    (N,) ``rowsᵀ · (scale * v)``. Where ``constant`` is given, every element becomes that, whatever it was."""

    rows: Orthogonal | None = None
    row_scale: Matrix | None = None  # of a matrix, a factor for each row
    scale: Matrix | None = None  # a factor for each column; of a vector, for each element
    columns: Orthogonal | None = None
    constant: float | None = None

    def of_rows(self, values: npt.NDArray[np.float32], first: int) -> npt.NDArray[np.float32]:
        """The rows of a matrix from ``first`` on, where ``rows`` is not given: a row of the result needs no other."""
        assert self.rows is None
        if self.constant is not None:
            return np.full_like(values, self.constant)
        wide = values.astype(np.float64)
        self._scale_rows(wide, first)
        self._on_columns(wide)
        return wide.astype(np.float32)

    def of_whole(self, wide: Matrix) -> None:
        """A whole matrix, or a vector, in place."""
        if self.constant is not None:
            wide[:] = self.constant
        elif wide.ndim == 1:
            if self.scale is not None:
                wide *= self.scale
            if self.rows is not None:
                wide[:] = self.rows.on_columns(wide)
        else:
            self._scale_rows(wide, 0)
            self._on_columns(wide)
            if self.rows is not None:
                step = max(_CHUNK // len(wide), 1)
                for start in range(0, wide.shape[1], step):
                    wide[:, start : start + step] = self.rows.on_rows(wide[:, start : start + step])

    def _scale_rows(self, wide: Matrix, first: int) -> None:
        if self.row_scale is not None:
            wide *= self.row_scale[first : first + len(wide), None]

    def _on_columns(self, wide: Matrix) -> None:
        if self.scale is not None:
            wide *= self.scale
        if self.columns is not None:
            step = max(_CHUNK // wide.shape[1], 1)
            for start in range(0, len(wide), step):
                wide[start : start + step] = self.columns.on_columns(wide[start : start + step])
