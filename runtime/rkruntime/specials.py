"""What users wrote, kept apart from the special tokens that a chat template writes.

Before a conversation goes into its template, special tokens' texts in it are replaced by stand-ins, and so is a
character at the edge of a text that begins or ends with a piece of one: two pieces that a template puts side by side
would make a whole. Afterwards what looks special is the template's. All of it takes time that is linear in the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Optional

from rk3588.hostlib import SimModel

# Noncharacters, which no template looks for. They frame the number of what they stand for.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_STAND_IN = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")
_LONGEST = 256  # characters of a piece: no special token is as long, and a hostile vocabulary must not cost the square
_ROLES = ("system", "user", "assistant", "tool")  # templates build special tokens out of these on purpose


class Specials:
    """The special tokens of one vocabulary."""

    def __init__(self, vocabulary: SimModel) -> None:
        self._vocabulary = vocabulary
        texts = set(_special_texts(vocabulary, 0, vocabulary.info.n_vocab))
        self._beginnings = _pieces(texts, lambda text, size: text[:size])
        self._ends = _pieces(texts, lambda text, size: text[-size:])
        self._special = re.compile(_any_of(texts)) if texts else None
        self._masked = re.compile(_any_of({*texts, _OPEN}))

    def mask(self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> Masked:
        return Masked(self, messages, variables)

    def masked_text(self, text: str, numbers: dict[str, int]) -> str:
        """``text`` with stand-ins. ``numbers`` remembers what each stands for."""

        def stand_in(original: str) -> str:
            return f"{_OPEN}{numbers.setdefault(original, len(numbers))}{_CLOSE}"

        text = self._masked.sub(lambda found: stand_in(found.group()), text)
        # A template may trim what it is given: the edges are where anything is that can be seen.
        last = len(text.rstrip())
        if last and self._beginnings.at_end(text[:last]):
            text = text[: last - 1] + stand_in(text[last - 1]) + text[last:]
        first = len(text) - len(text.lstrip())
        if first < len(text) and self._ends.at_start(text[first:]):
            text = text[:first] + stand_in(text[first]) + text[first + 1 :]
        return text

    def encode(self, text: str, originals: Sequence[str]) -> list[int]:
        """Ids of a rendered text: the special tokens it shows are the template's, the rest is mere characters."""
        ids: list[int] = []
        if not originals:
            return self._vocabulary.tokenise(text)
        at = 0
        for found in self._special.finditer(text) if self._special else ():
            ids += self._plain(text[at : found.start()], originals)
            ids += self._vocabulary.tokenise(found.group())
            at = found.end()
        return ids + self._plain(text[at:], originals)

    def _plain(self, text: str, originals: Sequence[str]) -> list[int]:
        def original(found: re.Match[str]) -> str:
            number = found.group(1)
            # A template can write what looks like a stand-in and is none.
            known = len(number) < 10 and int(number) < len(originals)
            return originals[int(number)] if known else found.group()

        text = _STAND_IN.sub(original, text)
        return self._vocabulary.tokenise(text, parse_special=False) if text else []


class Masked:
    """A conversation with stand-ins, and how to encode what a template makes of it."""

    def __init__(self, specials: Specials, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> None:
        self._specials = specials
        self._numbers: dict[str, int] = {}
        self.messages = [self._message(message) for message in messages]
        self.variables = {name: self._value(value) for name, value in variables.items()}

    def encode(self, text: str) -> list[int]:
        return self._specials.encode(text, list(self._numbers))

    def _message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = self._value(message)
        if message.get("role") in _ROLES:
            found["role"] = message["role"]
        return found

    def _value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._specials.masked_text(value, self._numbers)
        if isinstance(value, Mapping):
            return {self._value(key): self._value(each) for key, each in value.items()}
        if isinstance(value, Sequence):
            return [self._value(each) for each in value]
        return value


class _Pieces:
    """Proper beginnings, or proper ends, of the special tokens."""

    def __init__(self, texts: set[str]) -> None:
        self._texts, self._longest = texts, max(map(len, texts), default=0)

    def at_end(self, text: str) -> bool:
        return any(text[-size:] in self._texts for size in range(1, min(self._longest, len(text)) + 1))

    def at_start(self, text: str) -> bool:
        return any(text[:size] in self._texts for size in range(1, min(self._longest, len(text)) + 1))


def _pieces(texts: Iterable[str], cut: Any) -> _Pieces:
    return _Pieces({cut(text, size) for text in texts for size in range(1, min(len(text), _LONGEST))})


def _special_texts(vocabulary: SimModel, start: int, end: int) -> Iterator[str]:
    """Texts of the special tokens among the ids from ``start`` to before ``end``: there are few, so by halves."""
    ids = list(range(start, end))
    whole = vocabulary.detokenise(ids) if ids else b""
    if not ids or len(whole) == len(vocabulary.detokenise(ids, skip_special=True)):
        return
    if len(ids) > 1:
        middle = (start + end) // 2
        yield from _special_texts(vocabulary, start, middle)
        yield from _special_texts(vocabulary, middle, end)
    elif whole:
        yield whole.decode("utf-8", "replace")


_Tree = dict[Optional[str], Any]


def _any_of(texts: Iterable[str]) -> str:
    """A pattern for the longest of ``texts``, as a tree: what they begin with alike is compared once."""
    tree: _Tree = {}
    for text in texts:
        node = tree
        for sign in text:
            node = node.setdefault(sign, {})
        node[None] = True  # one may end here
    return _branch(tree)


def _branch(node: _Tree) -> str:
    """Recursion as deep as the longest special token, which ``_special_texts`` took from a checked vocabulary."""
    chain = ""
    while len(node) == 1 and None not in node:
        ((sign, node),) = node.items()
        chain += re.escape(str(sign))
    rest = [re.escape(sign) + _branch(child) for sign, child in node.items() if sign is not None]
    if not rest:
        return chain
    return f"{chain}(?:{'|'.join(rest)}){'?' if None in node else ''}"
