"""What readers of an answer under way have in common: how much of its end has to be held back until more has come."""

from __future__ import annotations

SPACE = 64  # characters of white space around thoughts and calls that are no part of the answer


def undecided(text: str, *wanted: str) -> int:
    """Length of the longest end of ``text`` with which one of ``wanted`` begins, and is not whole."""
    most = min(max(map(len, wanted), default=1) - 1, len(text))
    ends = (size for size in range(most, 0, -1) if any(each.startswith(text[-size:]) for each in wanted))
    return next(ends, 0)


def without_space(text: str, end: int) -> int:
    """Where the white space before ``end`` begins, as far as it counts."""
    return max(len(text[:end].rstrip()), end - SPACE)
