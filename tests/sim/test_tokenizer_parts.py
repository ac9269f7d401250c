"""Unicode tables, NFC, pre-tokenisers and UTF-8, each against tokenizers or Python itself."""

from __future__ import annotations

import ctypes as c
import os
import random
import runpy
import subprocess
import unicodedata
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, normalizers, pre_tokenizers

from tests.conftest import ROOT
from tests.tokenizers_reference import ALPHABETS, GPT_4O, TEKKEN, WORDS, random_texts

SOURCES = ROOT / "runtime" / "sim" / "src"
CHARS = [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS_BY_GPT2 = pre_tokenizers.Split(Regex(_GPT2), "isolated")
# Split instead of ByteLevel: the same expression (test_bytelevel_splits_by_it), and pieces that are still text.
SPLITS = {
    "gpt-2": _WORDS_BY_GPT2,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _WORDS_BY_GPT2]),
    "llama-bpe": pre_tokenizers.Split(Regex(WORDS % "{1,3}"), "isolated"),
    "qwen2": pre_tokenizers.Split(Regex(WORDS % ""), "isolated"),
    "tekken": pre_tokenizers.Split(Regex(TEKKEN), "isolated"),
    "gpt-4o": pre_tokenizers.Split(Regex(GPT_4O), "isolated"),
}


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> c.CDLL:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.so"
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-I{SOURCES}"]
    parts = [str(SOURCES / name) for name in ("unicode.cpp", "unicode_nfc.cpp", "tokenizer_split.cpp")]
    sources = [*parts, str(ROOT / "tests" / "tokenizer_shim.cpp")]
    subprocess.run([os.environ.get("CXX", "c++"), *flags, *sources, "-o", str(path)], check=True)
    lib = c.CDLL(str(path))
    lib.shim_split.argtypes = [c.c_char_p, c.c_char_p, c.c_size_t, c.c_void_p]
    lib.shim_nfc.argtypes = [c.c_char_p, c.c_size_t, c.c_char_p]
    lib.shim_incomplete.argtypes = [c.c_char_p, c.c_size_t]
    for name in ("split", "nfc", "incomplete"):
        getattr(lib, f"shim_{name}").restype = c.c_size_t
    return lib


def split(shim: c.CDLL, pre: str, text: str) -> list[int]:
    """Where the words end, in bytes."""
    raw = text.encode()
    ends = (c.c_uint32 * len(raw))()
    return ends[: shim.shim_split(pre.encode(), raw, len(raw), ends)]


def wanted(pre: str, text: str) -> list[int]:
    pieces = [piece for piece, _ in SPLITS[pre].pre_tokenize_str(text)]
    return list(accumulate(len(piece.encode()) for piece in pieces))


def nfc(shim: c.CDLL, text: str) -> str:
    raw = text.encode()
    out = c.create_string_buffer(3 * len(raw) + 1)
    size = shim.shim_nfc(raw, len(raw), out)
    return out.raw[:size].decode()


def test_the_tables_are_what_tokenizers_does() -> None:
    tool = runpy.run_path(str(ROOT / "runtime" / "sim" / "tools" / "make_unicode_tables.py"))
    checked_in = (SOURCES / "unicode_tables.inc").read_text().splitlines()
    made = tool["tables"]().splitlines()
    different = [(a, b) for a, b in zip(made[1:], checked_in[1:]) if a != b]
    remedy = "run runtime/sim/tools/make_unicode_tables.py for this version of tokenizers"
    assert not different and len(made) == len(checked_in), remedy


@pytest.mark.parametrize("pre", SPLITS)
def test_every_kind_of_character_splits_as_it_should(pre: str, shim: c.CDLL) -> None:
    """Which kind each of the others is of, the tables say, and the test of the tables."""
    chars = [*CHARS[:0x3100], *random.Random(4).sample(CHARS, 3000)]
    for around in ("a{}b", " {}1", "'{} ", "{}\n"):
        text = "".join(map(around.format, chars))
        assert split(shim, pre, text) == wanted(pre, text)


@pytest.mark.parametrize("pre", SPLITS)
def test_random_texts_split_as_they_should(pre: str, shim: c.CDLL) -> None:
    for text in random_texts(2, 10_000, ["<|im_start|>", "'LL", "'ſ", "\r\n \r"]):
        assert split(shim, pre, text) == wanted(pre, text), ascii(text)


@given(st.text(st.sampled_from("a1 '/\t\n\réſSlLvVeE.½々ǅªʰ\u3000\u0301")))
def test_short_texts_split_as_they_should(shim: c.CDLL, text: str) -> None:
    for pre in SPLITS:
        assert split(shim, pre, text) == wanted(pre, text)


@given(st.text() | st.text(st.sampled_from("a1 's\t\n\réſ.½")))
def test_bytelevel_splits_by_it(text: str) -> None:
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    lengths = [len(piece) for piece, _ in whole.pre_tokenize_str(text)]
    assert list(accumulate(lengths)) == wanted("gpt-2", text)


def test_nfc_of_every_character(shim: c.CDLL) -> None:
    text = "\n".join(CHARS)
    assert nfc(shim, text) == normalizers.NFC().normalize_str(text)


def test_nfc_of_marks_on_letters_and_on_other_marks(shim: c.CDLL) -> None:
    draw = random.Random(3)
    decomposed = [char for char in CHARS if normalizers.NFD().normalize_str(char) != char]
    parts = sorted({part for char in decomposed[:2060] for part in normalizers.NFD().normalize_str(char)})
    marks = [char for char in CHARS if unicodedata.category(char).startswith("M")]
    text = "\n".join(f"{letter}{mark}" for letter in "aEoUαωग" for mark in [*parts, *marks])
    assert nfc(shim, text) == normalizers.NFC().normalize_str(text)
    several = [*parts, *marks, *ALPHABETS[9], *ALPHABETS[10], *ALPHABETS[11]]
    for _ in range(5000):
        text = "".join(draw.choices(several, k=draw.randint(1, 8)))
        assert nfc(shim, text) == normalizers.NFC().normalize_str(text), ascii(text)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_nfc_of_any_text(shim: c.CDLL, text: str) -> None:
    assert nfc(shim, text) == normalizers.NFC().normalize_str(text)


@given(st.binary(max_size=8) | st.text(max_size=3).map(str.encode), st.integers(0, 3))
def test_incomplete_utf8_is_what_more_bytes_could_finish(shim: c.CDLL, raw: bytes, cut: int) -> None:
    raw = raw[: len(raw) - cut] if cut else raw
    endings = [
        b"",
        *(bytes(more) for more in ([0x80], [0x80] * 2, [0x80] * 3, [0xBF], [0xBF, 0x80], [0xBF, 0x80, 0x80])),
    ]
    found = next(
        (n for n in (1, 2, 3) if n <= len(raw) and any(_one_character(raw[-n:] + more) for more in endings[1:])), 0
    )
    assert shim.shim_incomplete(raw, len(raw)) == found


def _one_character(raw: bytes) -> bool:
    try:
        return len(raw.decode()) == 1
    except UnicodeDecodeError:
        return False
