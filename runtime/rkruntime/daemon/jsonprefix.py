"""Whether what has come of an answer can still become JSON: each character is looked at once, as it comes."""

from __future__ import annotations

import json
import re
from typing import Optional

from .strictjson import MAX_DEPTH

FENCE = "```"
_SPACE = " \t\n\r"
_LITERALS = ("true", "false", "null")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')  # inside a string, up to what means something there
_MOST_DIGITS = 400
# What may come next.
_VALUE, _FIRST_VALUE, _KEY, _FIRST_KEY, _COLON, _AFTER = "value", "value or ]", "key", "key or }", ":", ", or an end"


class JsonPrefix:
    """``feed`` the text as it comes, until ``whole`` or ``problem``; ``text`` is what there is of the value.

    ``whole``: the value has ended. Objects, lists and strings do so by themselves; that a number has, only what follows
    it tells. ``problem``: it cannot become JSON any more, and why. White space before the value is no part of it, nor
    is the code fence that models love.
    """

    def __init__(self, is_object: bool = False) -> None:
        self.whole = False
        self.problem: Optional[str] = None
        self._is_object = is_object
        self._parts: list[str] = []
        self._start = 0  # of the value; and behind it
        self._end: Optional[int] = None
        self._failed: Optional[int] = None  # where
        self._read = 0  # characters before those that are under way
        self._head: Optional[str] = ""  # before the value: white space, a fence; None: it has begun
        self.fenced = False  # it stands in a code fence
        self._open: list[str] = []  # brackets
        self._next = _VALUE
        self._word = ""  # a number or a literal under way
        self._string: Optional[str] = None  # what follows in a string: "" text, an escape under way

    @property
    def text(self) -> str:
        return "".join(self._parts)[self._start : self._end].strip() if self._head is None else ""

    @property
    def taken(self) -> int:
        """Characters that are the value's, or could have become it: what was fed after them is something else."""
        stopped = self._end if self._failed is None else self._failed
        return self._read if stopped is None else stopped

    def feed(self, text: str) -> None:
        self._parts.append(text)
        at = 0
        while at < len(text) and not (self.whole or self.problem):
            if self._head is not None:
                at = self._before(text, at)
            elif self._string is not None:
                at = self._in_string(text, at)
            else:
                at = self._between(text[at], at)
        if self.whole and self._end is None:
            self._end = self._read + at
        self._read += len(text)

    def _fail(self, at: int, why: str) -> None:
        self._failed = self._read + at
        self.problem = f"it is not JSON: {why} at character {self._failed + 1}"

    def _before(self, text: str, at: int) -> int:
        """White space and a fence, before the value."""
        assert self._head is not None
        sign = text[at]
        if not self._head and not sign.isspace() and sign != "`":
            self._head, self._start = None, self._read + at
            if self._is_object and sign != "{":
                self._fail(at, f"{sign!r} instead of '{{'")
            return at
        if not self._head and sign.isspace():
            return at + 1
        self._head += sign
        if self.fenced:
            self._fail(at, "a second code fence")
        elif sign == "\n" and self._head.startswith(FENCE):
            self.fenced = True
            if self._head[len(FENCE) :].strip().lower() in ("", "json"):
                self._head = ""
            else:
                self._fail(at, "a code fence of another language")
        elif not FENCE.startswith(self._head[: len(FENCE)]) or len(self._head) > 20:
            self._fail(at, f"{self._head[:20]!r}")
        return at + 1

    def _between(self, sign: str, at: int) -> int:
        """Outside of strings."""
        if self._word:
            return self._in_word(sign, at)
        if sign in _SPACE:
            return at + 1
        step = _STEPS.get((self._next, sign))
        if step is not None:
            self._next = step
        elif self._next in (_VALUE, _FIRST_VALUE) and sign in "{[":
            self._open.append(sign)
            self._next = _FIRST_KEY if sign == "{" else _FIRST_VALUE
            if len(self._open) > MAX_DEPTH:
                self._fail(at, "nesting too deep")
        elif sign == '"' and self._next in (_VALUE, _FIRST_VALUE, _KEY, _FIRST_KEY):
            self._string = ""
            self._next = _COLON if self._next in (_KEY, _FIRST_KEY) else _AFTER
        elif self._next in (_VALUE, _FIRST_VALUE) and (sign in "-tfn" or sign in "0123456789"):
            self._word = sign
        elif self._open and sign == {"{": "}", "[": "]"}[self._open[-1]] and self._may_end():
            self._open.pop()
            self._ended()
        elif sign == "," and self._open and self._next == _AFTER:
            self._next = _KEY if self._open[-1] == "{" else _VALUE
        else:
            self._fail(at, f"{sign!r}")
        return at + 1

    def _may_end(self) -> bool:
        return self._next == _AFTER or self._next == (_FIRST_KEY if self._open[-1] == "{" else _FIRST_VALUE)

    def _ended(self) -> None:
        """A value has."""
        self._next = _AFTER
        self.whole = not self._open

    def _in_word(self, sign: str, at: int) -> int:
        grown = self._word + sign
        if len(grown) <= _MOST_DIGITS and _can_become_a_word(grown):
            self._word = grown
            return at + 1
        if not (self._word in _LITERALS or _NUMBER.fullmatch(self._word)) or sign.isalnum() or sign in "+-.":
            self._fail(at, f"{grown[-20:]!r}")
            return at + 1
        self._word = ""
        self._ended()
        return at  # the sign is another's

    def _in_string(self, text: str, at: int) -> int:
        assert self._string is not None
        if not self._string:
            plain = _PLAIN.match(text, at)
            if plain:
                return plain.end()
        sign = text[at]
        if self._string:  # an escape
            self._string += sign
            if self._string[1] == "u":
                if len(self._string) > 2 and sign not in "0123456789abcdefABCDEF":
                    self._fail(at, f"{self._string!r}")
                if len(self._string) == 6:
                    self._string = ""
            elif sign in '"\\/bfnrt':
                self._string = ""
            else:
                self._fail(at, f"{self._string!r}")
        elif sign == "\\":
            self._string = sign
        elif sign == '"':
            self._string = None
            if self._next == _AFTER:
                self._ended()
        else:
            self._fail(at, f"the control character {json.dumps(sign)} inside a string")
        return at + 1


_STEPS = {(_COLON, ":"): _VALUE}
_PARTS = re.compile(r"-?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|(?:0|[1-9][0-9]*)(?:\.[0-9]+)?[eE][+-]?[0-9]*)?")


def _can_become_a_word(text: str) -> bool:
    return any(word.startswith(text) for word in _LITERALS) or _PARTS.fullmatch(text) is not None
