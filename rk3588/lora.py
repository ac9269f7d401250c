"""How an adapter is named on a command line: ``WHAT[:NAME[:SCALE]]``."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import NamedTuple, Optional

from .errors import UsageError
from .quant import SCHEMES

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
LATEST, BACKGROUND = "latest", "background"
RESERVED = frozenset({*SCHEMES, LATEST, BACKGROUND})  # what may stand after a model's name in requests to the daemon


class Wanted(NamedTuple):
    """``name`` and ``scale`` are None where they are left out or empty."""

    what: str
    name: Optional[str]
    scale: Optional[float]


def parse(text: str, known: Callable[[str], bool]) -> Optional[Wanted]:
    """Split ``text`` so that ``known`` says yes to its first part, which may have colons itself; None if it never does.

    UsageError for a name or a scale that is none.
    """
    for parts in range(3):
        what, *rest = text.rsplit(":", parts)
        if len(rest) == parts and known(what):
            name, scale = (*rest, "", "")[:2]
            return Wanted(what, checked_name(name, text) if name else None, _scale(scale, text) if scale else None)
    return None


def checked_name(name: str, text: str) -> str:
    """``name`` if it can be an adapter's; ``text`` is what it came from."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"--lora {text}: {name!r} cannot be an adapter's name; give one with letters, digits, '.', '_' and '-'"
        )
    if name in RESERVED:
        raise UsageError(
            f"--lora {text}: an adapter cannot be called {name!r}, which after a model's name means something else to "
            "the daemon; give it another name (ADAPTER:NAME)"
        )
    return name


def _scale(value: str, text: str) -> float:
    try:
        scale = float(value)
    except ValueError:
        scale = math.nan
    if not math.isfinite(scale):
        raise UsageError(f"--lora {text}: the scale is {value!r}, expected a number")
    return scale
