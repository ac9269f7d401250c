"""The fields of a request's body, each of the type it has to be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn, Optional

from rk3588.errors import RequestRefused

from . import strictjson
from .strictjson import BadJson


def parse_json(body: bytes) -> dict[str, Any]:
    """The object in a request's body."""
    try:
        found = strictjson.parse(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RequestRefused(f"the body is not UTF-8 (byte {error.start})") from error
    except BadJson as error:
        raise RequestRefused(f"the body is {error}") from error
    if not isinstance(found, dict):
        raise RequestRefused("the body has to be a JSON object")
    return found


class Fields(Mapping[str, Any]):
    """A body's fields. Those that are null count as left out."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._found = {key: value for key, value in body.items() if value is not None}

    def __getitem__(self, key: str) -> Any:
        return self._found[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def flag(self, name: str) -> bool:
        return bool(self._typed(name, bool, "true or false", False))

    def text(self, name: str) -> Optional[str]:
        found: Optional[str] = self._typed(name, str, "a string", None)
        return found

    def mapping(self, name: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._typed(name, dict, "an object", {})
        return found

    def items_of(self, name: str) -> Sequence[Any]:
        found: Sequence[Any] = self._typed(name, list, "a list", ())
        return found

    def whole(self, name: str) -> Optional[int]:
        value = self.number(name)
        if isinstance(value, float):
            if not value.is_integer():
                refuse(name, "a whole number")
            return int(value)  # 5.0 is one, too
        return value

    def number(self, name: str) -> Optional[float]:
        value = self.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            refuse(name, "a number")
        return value

    def _typed(self, name: str, kind: type, what: str, default: Any) -> Any:
        value = self.get(name, default)
        if name in self and not isinstance(value, kind):
            refuse(name, what)
        return value


def refuse(param: str, what: str) -> NoReturn:
    raise RequestRefused(f"{param!r} has to be {what}", param)
