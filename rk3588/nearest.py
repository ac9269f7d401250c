"""What a name that is not known was probably meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Optional


def closest(name: str, known: Iterable[str], cutoff: float = 0.55) -> Optional[str]:
    by_lower = {n.lower(): n for n in known}
    close = difflib.get_close_matches(name.lower()[:200], by_lower, 1, cutoff)
    return by_lower[close[0]] if close else None


def nearest(name: str, known: Iterable[str]) -> str:
    """``did you mean 'x'?``, or all names when none is near."""
    names = list(known)
    close = closest(name, names)
    if close is not None:
        return f"did you mean {close!r}?"
    return f"known are {', '.join(names)}" if names else "there are none yet"
