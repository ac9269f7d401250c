"""The fields of a request's body, each of the type it has to be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn, Optional

from rk3588.errors import RequestRefused
from rk3588.fields import NUMBER, TypedFields

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


class Fields(TypedFields, Mapping[str, Any]):
    """A body's fields. Those that are null count as left out."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        super().__init__({key: value for key, value in body.items() if value is not None})

    def __getitem__(self, key: str) -> Any:
        return self._found[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def wrong(self, key: str, expected: str) -> NoReturn:
        refuse(key, expected)

    def text(self, name: str) -> Optional[str]:
        found: Optional[str] = self.typed(name, str, "a string")
        return found

    def mapping(self, name: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.typed(name, dict, "an object", {})
        return found

    def items_of(self, name: str) -> Sequence[Any]:
        found: Sequence[Any] = self.typed(name, list, "a list", ())
        return found

    def whole(self, name: str) -> Optional[int]:
        value = self.number(name)
        if isinstance(value, float):
            if not value.is_integer():
                refuse(name, "a whole number")
            return int(value)  # 5.0 is one, too
        return value

    def number(self, name: str) -> Optional[float]:
        found: Optional[float] = self.typed(name, NUMBER, "a number")
        return found


def refuse(param: str, what: str) -> NoReturn:
    raise RequestRefused(f"{param!r} has to be {what}", param)
