"""Values by name that came from outside (a request's body, a config.json), each of the type that it has to be."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NoReturn, Union

Kind = Union[type, tuple[type, ...]]
NUMBER: Kind = (int, float)


class TypedFields(ABC):
    """A value of None counts as left out. A subclass says in its own words, and with its own error, what is wrong."""

    def __init__(self, found: Mapping[str, Any]) -> None:
        self._found = found

    @abstractmethod
    def wrong(self, key: str, expected: str) -> NoReturn:
        """Raise, since what stands under ``key`` is not what is ``expected``."""

    def typed(self, key: str, kind: Kind, expected: str, default: Any = None) -> Any:
        """The value under ``key``, or ``default``. True and False are no numbers here, though Python has them so."""
        value = self._found.get(key)
        if value is None:
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            self.wrong(key, expected)
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        return bool(self.typed(key, bool, "true or false", default))
