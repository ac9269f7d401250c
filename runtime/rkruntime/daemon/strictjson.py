"""JSON as others may send it: read in linear time, and refused where two readers could understand two things."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

MAX_DEPTH = 64  # objects and lists inside each other; templates, schema checks and the worker walk them by recursion
_MAX_DIGITS = 400  # of a number; Python reads longer ones in quadratic time
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


class BadJson(ValueError):
    """The text says why it is refused."""


class TooDeep(BadJson):
    """Lists and objects nest too deeply."""


def parse(text: str) -> Any:
    """The value; strings are free of halves of surrogate pairs, which UTF-8 cannot write. Raises BadJson."""
    try:
        found = json.loads(
            text, parse_int=_whole, parse_float=_number, parse_constant=_constant, object_pairs_hook=_object
        )
    except RecursionError:
        raise _too_deep() from None
    except BadJson:
        raise
    except ValueError as error:
        raise BadJson(f"not JSON: {error}") from error
    check_depth(found)
    if _HALF_PAIR.search(text):
        found = json.loads(json.dumps(found, ensure_ascii=False).encode("utf-8", "replace"))
    return found


def check_depth(value: Any) -> None:
    """TooDeep where lists and objects nest too deeply; without recursion."""
    level, depth = [value], 0
    while level:
        level = [each for each in level if isinstance(each, (dict, list))]
        depth += bool(level)
        if depth > MAX_DEPTH:
            raise _too_deep()
        level = [part for each in level for part in (each.values() if isinstance(each, dict) else each)]


def _too_deep() -> TooDeep:
    return TooDeep(f"nested too deeply: at most {MAX_DEPTH} lists and objects inside each other")


def _whole(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise BadJson(f"not JSON that can be used: a number of {len(digits)} digits")
    return int(digits)


def _number(digits: str) -> float:
    if len(digits) > _MAX_DIGITS or math.isinf(float(digits)):
        raise BadJson(f"not JSON that can be used: the number {digits[:20]}… is too large or too long")
    return float(digits)


def _constant(name: str) -> NoReturn:
    raise BadJson(f"not JSON: {name} is no number there")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise BadJson(f"ambiguous: {twice[:40]!r} stands twice in an object")
    return found
