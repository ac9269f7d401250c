"""Typed access to the settings of a checkpoint: what is missing or of the wrong kind is one clear sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rk3588.errors import CheckpointError

MOST_SIDE = 1 << 20  # what the runtime takes of a size, and far above any model
MOST_CONTEXT = 1 << 30


class Fields:
    """A mapping read from a file; ``where`` begins each sentence. A value of None counts as absent."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = values, where

    def get(self, key: str) -> Any:
        return self.values.get(key)

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        value = default if value is None else value
        if value is None:
            raise CheckpointError(f"{self.where} lacks {key!r}, which this model needs")
        return value

    def whole(self, key: str, default: int | None = None, most: int = MOST_SIDE) -> int:
        value = self._value(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise CheckpointError(f"{self.where}: {key!r} is {shown(value)}, expected a whole number from 1 to {most}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._value(key, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 3e38:
            raise CheckpointError(f"{self.where}: {key!r} is {shown(value)}, expected a number above zero")
        return float(value)

    def number_or_none(self, key: str) -> float | None:
        return None if self.values.get(key) is None else self.number(key)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise CheckpointError(f"{self.where}: {key!r} is {shown(value)}, expected true or false")
        return value

    def text(self, key: str, default: str) -> str:
        value = self._value(key, default)
        if not isinstance(value, str):
            raise CheckpointError(f"{self.where}: {key!r} is {shown(value)}, expected a text")
        return value

    def numbers(self, key: str, count: int) -> tuple[float, ...]:
        """``count`` numbers above zero."""
        value = self._value(key, None)
        right = isinstance(value, list) and len(value) == count
        if not right or not all(type(v) in (int, float) and 0 < v < 3e38 for v in value):
            raise CheckpointError(f"{self.where}: {key!r} is {shown(value)}, expected {count} numbers above zero")
        return tuple(float(v) for v in value)

    def mapping(self, key: str) -> Fields:
        """The object under ``key``; without it, an empty one."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            raise CheckpointError(f"{self.where}: {key!r} is {shown(value)}, expected an object or null")
        return Fields(value or {}, f"{self.where}: {key}")


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}…"
