"""Writes ../src/unicode_tables.inc: what `tokenizers` itself takes for a letter, a number, a space, and its NFC.

The library mixes Unicode versions (its regular expressions, Rust's char and the NFC crate each have their own), so the
tables are read off its behaviour, code point by code point, and hold for the version named in their first line.

    python make_unicode_tables.py > ../src/unicode_tables.inc
"""

from __future__ import annotations

import sys
import textwrap
import unicodedata
from collections.abc import Iterable, Mapping
from itertools import groupby

import tokenizers
from tokenizers import Regex, normalizers, pre_tokenizers

LETTER, NUMBER, SPACE, NUMERIC, UPPER, LOWER, MARK = 1, 2, 4, 8, 16, 32, 64  # as in unicode.h
CHARS = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
_HANGUL = range(0xAC00, 0xAC00 + 11172)  # composed and decomposed by arithmetic


def properties() -> dict[str, int]:
    r"""Flags of every character that has any: ``\p{L}``, ``\p{N}``, ``\s``, capitals, small letters, marks, and
    ``Digits``'s idea of a number."""
    found = dict.fromkeys(CHARS, 0)
    everything = "".join(CHARS)
    classes = {
        r"\p{L}": LETTER, r"\p{N}": NUMBER, r"\s": SPACE, r"[\p{Lu}\p{Lt}]": UPPER, r"\p{Ll}": LOWER, r"\p{M}": MARK
    }  # fmt: skip
    for pattern, flag in classes.items():
        rest = set(normalizers.Replace(Regex(pattern), "").normalize_str(everything))
        for char in CHARS:
            found[char] |= 0 if char in rest else flag
    # Between letters, only what Digits takes for a number becomes a piece of its own.
    for piece, _ in pre_tokenizers.Digits(individual_digits=True).pre_tokenize_str("a".join(CHARS)):
        if len(piece) == 1 and piece != "a":
            found[piece] |= NUMERIC
    return found


def _each(normaliser: normalizers.Normalizer, texts: Iterable[str]) -> list[str]:
    """Every text normalised for itself: a line break is a starter that composes with nothing."""
    return normaliser.normalize_str("\n".join(texts)).split("\n")


def decompositions() -> dict[str, str]:
    """Full canonical decompositions, without Hangul's syllables."""
    chars = [c for c in CHARS if c != "\n" and ord(c) not in _HANGUL]
    return {c: d for c, d in zip(chars, _each(normalizers.NFD(), chars)) if c != d}


def combining_classes(decomposed: Mapping[str, str]) -> dict[str, int]:
    """Canonical combining classes that are not 0, from the order that NFD puts marks into."""
    low, high = "\u0334", "\u0345"  # classes 1 and 240, the lowest and the highest
    chars = [c for c in CHARS if c != "\n" and c not in decomposed and ord(c) not in _HANGUL]
    behind = _each(normalizers.NFD(), (c + low for c in chars))
    before = _each(normalizers.NFD(), (high + c for c in chars))
    moving = [c for c, b, f in zip(chars, behind, before) if b != c + low or f != high + c or c in (low, high)]
    # unicodedata only names one mark of each class; it may know marks that the NFC crate does not.
    marks = {unicodedata.combining(c): c for c in reversed(moving)}
    classes = dict.fromkeys(moving, 0)
    for value, mark in sorted(marks.items()):  # the last mark that stays in front of the character has its class
        for c, text in zip(moving, _each(normalizers.NFD(), (mark + c for c in moving))):
            if text == mark + c:
                classes[c] = value
    return classes


def compositions(decomposed: Mapping[str, str]) -> dict[tuple[str, str], str]:
    """Pairs that NFC makes one character of."""
    nfc = normalizers.NFC()
    candidates = [(c, d) for c, d in decomposed.items() if len(d) > 1]
    firsts = _each(nfc, (d[:-1] for _, d in candidates))
    pairs = [((first, d[-1]), c) for first, (c, d) in zip(firsts, candidates) if len(first) == 1]
    whole = _each(nfc, (a + b for (a, b), _ in pairs))
    return {pair: c for (pair, c), text in zip(pairs, whole) if text == c}


def _runs(values: Mapping[int, int]) -> list[tuple[int, int, int]]:
    """(first, last, value) of neighbours that share a value, without zeros."""
    runs = []
    for value, group in groupby(sorted(values.items()), key=lambda item: item[1]):
        points = [point for point, _ in group]
        if value:
            runs.append((points[0], points[-1], value))
    return runs


def _array(kind: str, name: str, items: Iterable[str]) -> str:
    body = textwrap.fill(", ".join(items), 116, initial_indent="  ", subsequent_indent="  ")
    return f"constexpr {kind} {name}[] = {{\n{body}}};\n"


def _hex(*chars: str) -> str:
    return ",".join(f"0x{ord(c):X}" for c in chars)


def tables() -> str:
    """The whole file."""
    decomposed = decompositions()
    everywhere = dict.fromkeys(range(0x110000), 0)
    flags = everywhere | {ord(c): value for c, value in properties().items()}
    classes = everywhere | {ord(c): value for c, value in combining_classes(decomposed).items()}
    pool = "".join(decomposed.values())
    offsets, at = [], 0
    for text in decomposed.values():
        offsets.append(at)
        at += len(text)
    pairs = sorted(compositions(decomposed).items())
    names = f"from the behaviour of tokenizers {tokenizers.__version__}"
    return "\n".join(
        [
            f"// Made by tools/make_unicode_tables.py {names}. Each file that includes this takes one half.",
            "#ifdef RKSIM_PROPERTY_TABLES",
            _array("Range", "kProperties", (f"{{0x{a:X},0x{b:X},{v}}}" for a, b, v in _runs(flags))),
            "#endif",
            "#ifdef RKSIM_NFC_TABLES",
            _array("Range", "kClasses", (f"{{0x{a:X},0x{b:X},{v}}}" for a, b, v in _runs(classes))),
            _array(
                "Decomposition",
                "kDecompositions",
                (f"{{{_hex(c)},{o},{len(d)}}}" for (c, d), o in zip(decomposed.items(), offsets)),
            ),
            _array("uint32_t", "kDecomposed", (_hex(c) for c in pool)),
            _array("Composition", "kCompositions", (f"{{{_hex(a, b, c)}}}" for (a, b), c in pairs)),
            "#endif\n",
        ]
    )


if __name__ == "__main__":
    sys.stdout.write(tables())
