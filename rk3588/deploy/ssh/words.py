"""Lines of ssh_config, taken apart as ssh does."""

from __future__ import annotations

import re

LINE = re.compile(r"\s*(\w+)(?:\s*=\s*|\s+)(.*?)\s*$")
_QUOTED = r""" "(?:\\["\\']|[^"])*" | '(?:\\["\\']|[^'])*' """
_WORD = re.compile(rf"""\s*(\#.*$ | (?: {_QUOTED} | \\["\\'\ ] | [^\s"'] )+ )""", re.VERBOSE)
_PIECE = re.compile(r"""\\(["\\' ])|["']""")


def words(text: str) -> list[str]:
    """The words of a line, without their quotes; a comment ends them. ValueError for a quote without an end."""
    found, at = [], 0
    while at < len(text.rstrip()):
        match = _WORD.match(text, at)
        if not match:
            raise ValueError(f"{text.strip()!r} has a quote without an end")
        if match[1].startswith("#"):
            break
        found.append(_PIECE.sub(lambda piece: piece[1] or "", match[1]))
        at = match.end()
    return found
