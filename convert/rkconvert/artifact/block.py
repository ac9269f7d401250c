"""Rows of a source tensor, and what can be made of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rk3588 import hostlib
from rk3588.errors import CheckpointError
from rk3588.quant import Scheme
from rkconvert.adapters.lora import Pair
from rkconvert.rotation.change import Change
from rkconvert.sources.base import Array, SourceTensor, as_float32


class Block:
    """Decoded rows of a source tensor, and what can be made of them; what is not finite is named with its place."""

    def __init__(self, tensor: SourceTensor, row: int, values: Array, kind: str) -> None:
        self.tensor, self.row = tensor, row
        self.values, self.kind = values, kind
        self._float32: npt.NDArray[np.float32] | None = None
        self._float16: npt.NDArray[np.float16] | None = None

    @classmethod
    def decoded(cls, tensor: SourceTensor, row: int, raw: bytes) -> Block:
        """Rows as they stand in the file."""
        return cls(tensor, row, *tensor.decode(raw))

    def merge(self, changes: Sequence[tuple[Pair, float]]) -> None:
        """Merge what adapters change in these rows. Summed in float64, so that the sum's order hardly ever shows."""
        rows = slice(self.row, self.row + len(self.values))
        wide = self.as_float32().astype(np.float64)
        for pair, scale in changes:
            wide += (scale * pair.factor) * (pair.b[rows].astype(np.float64) @ pair.a.astype(np.float64))
        self._replace(wide.astype(np.float32))

    def change(self, change: Change) -> None:
        """Make the change, one that makes each row of itself alone."""
        self._replace(change.of_rows(self.as_float32(), self.row))

    def _replace(self, values: npt.NDArray[np.float32]) -> None:
        self.values, self.kind, self._float32 = values, "F32", None

    def quantised(self, scheme: Scheme) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
        try:
            return hostlib.quantise(self.values, self.kind, scheme)
        except ValueError as error:
            raise self._not_finite(*error.args) from None

    def as_float32(self) -> npt.NDArray[np.float32]:
        if self._float32 is None:
            self._float32 = as_float32(self.values, self.kind)
            finite = np.isfinite(self._float32)
            if not finite.all():
                raise self._not_finite(*np.argwhere(~finite)[0])
        return self._float32

    def as_float16(self) -> npt.NDArray[np.float16]:
        if self._float16 is None:
            halves = hostlib.bf16_to_float16(self.values) if self.kind == "BF16" else None
            self._float16 = self._checked_float16() if halves is None else halves
        return self._float16

    def encoded(self, kind: str) -> Array:
        """As a checkpoint of that type has them."""
        if kind == "F16":
            return self.as_float16()
        values = self.as_float32()
        return values if kind == "F32" else to_bf16(values)

    def _checked_float16(self) -> npt.NDArray[np.float16]:
        values = self.as_float32()
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        infinite = np.isinf(halves)
        if infinite.any():
            row, column = np.argwhere(infinite)[0]
            raise CheckpointError(
                f"{self._place(row, column)} is {values[row, column]:g}, more than fp16 holds (65504): only --dtype "
                "fp32 can keep it"
            )
        return halves

    def _not_finite(self, row: int, column: int) -> CheckpointError:
        value = self.values[row, column]
        if self.kind == "BF16":
            value = np.array([value], np.uint16).astype(np.uint32).__lshift__(16).view(np.float32)[0]
        return CheckpointError(f"{self._place(row, column)} is {value}: the model is damaged, get it again")

    def _place(self, row: int, column: int) -> str:
        matrix = len(self.tensor.shape) == 2
        place = f"row {self.row + row}, column {column}" if matrix else f"position {self.row + row + column}"
        return f"{self.tensor.file}: tensor {self.tensor.name}, {place}"


def to_bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """The nearest bf16, half to even, as bits."""
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.asarray(rounded, "<u2")
