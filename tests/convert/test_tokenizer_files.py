"""Vocabularies that are wrong, hostile or large: one sentence, never a crash, never minutes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from rk3588.errors import SimError
from rk3588.hostlib import SimModel
from tests.tokenizers_reference import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    byte_level,
    sentencepiece,
    write_vocabulary,
)

GOOD: dict[str, Any] = {"tokens": ["a", "b", "ab"], "pre": "gpt-2", "merges": ["a b"]}
LLAMA: dict[str, Any] = {"pre": None, "model": "llama", "merges": None, "scores": [0.0, 0.0, 0.0]}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a family": ({"model": "bert"}, "'bert' is neither gpt2 nor llama"),
    "a pre-tokeniser": ({"pre": "qwen35"}, "'qwen35' is none of gpt-2, smollm, llama-bpe, qwen2, tekken and gpt-4o"),
    "a pre-tokeniser of the other family": ({**LLAMA, "pre": "gpt-2"}, "'gpt-2' is none of default"),
    "no merges": ({"merges": None}, "lacks tokenizer.ggml.merges"),
    "a merge of an unknown part": ({"merges": ["a b", "a c"]}, "merge 1 .* needs 'c', which is no token"),
    "a merge into an unknown token": ({"merges": ["b a"]}, "merge 0 .* needs 'ba', which is no token"),
    "a merge of one part": ({"merges": ["ab"]}, "merge 0 .* is 'ab', not two tokens"),
    "a merge of half a pair": ({"merges": ["a "]}, "merge 0 .* is 'a ', not two tokens"),
    "a merge of three": ({"merges": ["a b ab"]}, "merge 0 .* is 'a b ab', not two tokens"),
    "too few types": ({"types": [1, 1]}, "3 tokens and 2 token types"),
    "an unknown type": ({"types": [1, 1, 7]}, "token 2 has the unknown type 7"),
    "BOS out of range": ({"bos_token_id": 3}, "bos_token_id is 3, the vocabulary ends at 2"),
    "EOT out of range": ({"eot_token_id": 2**31}, "eot_token_id is 2147483648, the vocabulary ends at 2"),
    "too few scores": ({**LLAMA, "scores": [0.0]}, "3 tokens and 1 scores"),
    "a score that is none": ({**LLAMA, "scores": [0.0, float("nan"), 0.0]}, "score of token 1 is not a finite number"),
    "neither scores nor merges": ({**LLAMA, "scores": None}, "neither scores nor merges"),
    "a token too long to split": ({**LLAMA, "tokens": ["a", "b", "a" * 5000]}, "token 2 has 5000 bytes, at most 1024"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_vocabulary_is_a_sentence(name: str, tmp_path: Path) -> None:
    changes, message = BAD[name]
    path = write_vocabulary(tmp_path / "t.gguf", **{**GOOD, **changes})
    with pytest.raises(SimError, match=message) as caught:
        SimModel(path, vocab_only=True)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).endswith("; convert the model again")


def test_the_right_one_opens(tmp_path: Path) -> None:
    with SimModel(write_vocabulary(tmp_path / "t.gguf", **GOOD), vocab_only=True) as model:
        assert model.tokenise("abba") == [2, 1, 0]


def test_the_last_of_a_merge_named_twice_holds(tmp_path: Path) -> None:
    tokens, merges = ["a", "b", "c", "ab", "bc"], ["a b", "b c", "a b"]
    with SimModel(write_vocabulary(tmp_path / "t.gguf", tokens, merges=merges), vocab_only=True) as model:
        assert model.tokenise("abc") == [0, 4]


@pytest.mark.parametrize("kind", [CONTROL, UNUSED])
@pytest.mark.parametrize("by_score", [False, True])
def test_typed_text_never_becomes_a_special_token(kind: int, by_score: bool, tmp_path: Path) -> None:
    """Published vocabularies have merges that lead to </s>; with parse_special off, no user may get there."""
    types = [NORMAL, NORMAL, NORMAL, NORMAL, kind]
    lists: dict[str, Any] = {"merges": ["x s", "xs y"]}
    if by_score:
        lists = {"model": "llama", "scores": [0.0, 0.0, 0.0, 2.0, 3.0], "add_space_prefix": False}
    path = write_vocabulary(tmp_path / "t.gguf", ["x", "s", "y", "xs", "xsy"], types=types, **lists)
    with SimModel(path, vocab_only=True) as model:
        assert model.tokenise("xsy", parse_special=False) == [3, 2]
        assert model.tokenise("xsy") == ([4] if kind == CONTROL else [3, 2])


def test_the_longest_of_the_leftmost_added_tokens(tmp_path: Path) -> None:
    tokens = ["a", "b", "c", "<x", "<x>", "<x><y>", "x><", "ab"]
    types = [NORMAL] * 3 + [USER_DEFINED, CONTROL, CONTROL, USER_DEFINED, NORMAL]
    path = write_vocabulary(tmp_path / "t.gguf", tokens, pre="gpt-2", types=types, merges=["a b"])
    with SimModel(path, vocab_only=True) as model:
        assert model.tokenise("a<x>b<x><y>c<xx><") == [0, 4, 1, 5, 2, 3, 6]
        # What is found and may not be read is text, and nothing is looked for inside it.
        assert model.tokenise("a<x>b<xx><", parse_special=False) == [0, 1, 3, 6]
        assert model.tokenise("a<x><b", parse_special=False) == [0, 1]


def test_bytes_for_characters_without_a_token(tmp_path: Path) -> None:
    tokens = ["▁", "a", *(f"<0x{b:02X}>" for b in range(256))]
    types = [NORMAL, NORMAL, *[BYTE] * 256]
    path = write_vocabulary(tmp_path / "t.gguf", tokens, model="llama", types=types, scores=[0.0] * len(tokens))
    with SimModel(path, vocab_only=True) as model:
        assert model.tokenise("a\né") == [0, 1, 2 + 10, 2 + 0xC3, 2 + 0xA9]
        assert model.detokenise(model.tokenise("a\né")) == "a\né".encode()


@pytest.mark.parametrize("family", ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken", "gpt-4o", "sentencepiece"])
@pytest.mark.parametrize("text", ["a", " ", "\n", "7", "<", "\u0323\u0301", "的", "'s", "a ", "\ufffd"], ids=ascii)
def test_a_megabyte_of_the_same(family: str, text: str, tmp_path: Path) -> None:
    """Quadratic anywhere would take minutes; the bound leaves room for a machine that is busy or instrumented."""
    made = sentencepiece() if family == "sentencepiece" else byte_level(family)
    whole = text * (1_000_000 // len(text.encode()))
    with SimModel(made.write(tmp_path / "t.gguf"), vocab_only=True) as model:
        start = time.process_time()
        ids = model.tokenise(whole)
        assert time.process_time() - start < 10
        if family != "qwen2":
            assert model.detokenise(ids) == whole.encode()


def test_a_vocabulary_of_gemmas_size(tmp_path: Path) -> None:
    """262,144 tokens and three quarters of a million merges, found by score. CPU time: the machine may be busy."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = list(letters)
    for word in words:
        words += [word + letter for letter in letters[: 262_143 - len(words)]]
        if len(words) >= 262_143:
            break
    scores = [-float(i) for i in range(262_144)]
    types = [UNKNOWN, *[NORMAL] * 262_143]
    path = write_vocabulary(tmp_path / "t.gguf", ["<unk>", *words], model="llama", types=types, scores=scores)
    start = time.process_time()
    with SimModel(path, vocab_only=True) as model:
        assert time.process_time() - start < 3
        assert model.tokenise("abcd", parse_special=False)[-1] == 1 + words.index("abcd")
