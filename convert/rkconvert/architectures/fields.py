"""Typed access to the settings of a checkpoint: what is missing or of the wrong kind is one clear sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from rk3588.errors import CheckpointError
from rk3588.fields import NUMBER, Kind, TypedFields

MOST_SIDE = 1 << 20  # what the runtime takes of a size, and far above any model
MOST_LAYERS, MOST_HEADS, MOST_CONTEXT = 4096, 4096, 1 << 30


class Fields(TypedFields):
    """A mapping read from a file; ``where`` begins each sentence. A value of None counts as absent."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        super().__init__(values)
        self.values, self.where = values, where

    def get(self, key: str) -> Any:
        return self.values.get(key)

    def wrong(self, key: str, expected: str) -> NoReturn:
        self._refuse(key, self.values[key], expected)

    def _refuse(self, key: str, value: Any, expected: str) -> NoReturn:
        raise CheckpointError(f"{self.where}: {key!r} is {shown(value)}, expected {expected}")

    def _needed(self, key: str, kind: Kind, expected: str, default: Any = None) -> Any:
        value = self.typed(key, kind, expected, default)
        if value is None:
            raise CheckpointError(f"{self.where} lacks {key!r}, which this model needs")
        return value

    def whole(self, key: str, default: int | None = None, most: int = MOST_SIDE) -> int:
        expected = f"a whole number from 1 to {most}"
        value = self._needed(key, int, expected, default)
        if not 1 <= value <= most:
            self._refuse(key, value, expected)
        return int(value)

    def number(self, key: str, default: float | None = None) -> float:
        expected = "a number above zero"
        value = self._needed(key, NUMBER, expected, default)
        if not 0 < value < 3e38:
            self._refuse(key, value, expected)
        return float(value)

    def number_or_none(self, key: str) -> float | None:
        return None if self.values.get(key) is None else self.number(key)

    def text(self, key: str, default: str) -> str:
        return str(self.typed(key, str, "a text", default))

    def numbers(self, key: str, count: int) -> tuple[float, ...]:
        """``count`` numbers above zero."""
        expected = f"{count} numbers above zero"
        value = self._needed(key, list, expected)
        if len(value) != count or not all(type(v) in (int, float) and 0 < v < 3e38 for v in value):
            self._refuse(key, value, expected)
        return tuple(float(v) for v in value)

    def mapping(self, key: str) -> Fields:
        """The object under ``key``; without it, an empty one."""
        return Fields(self.typed(key, dict, "an object or null", {}), f"{self.where}: {key}")


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}…"
