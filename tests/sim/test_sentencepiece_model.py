"""tokenizer.model: what the runtime makes of it is what the package sentencepiece makes of it."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rk3588 import hostlib, quant
from rk3588.errors import CheckpointError
from rkconvert.artifact import header
from rkconvert.build import convert
from rkconvert.sources.opening import open_source
from rkconvert.tokenizers.huggingface import read_vocabulary
from rkconvert.tokenizers.sentencepiece_model import read_model
from rkconvert.tokenizers.vocabulary import CONTROL, NORMAL, UNKNOWN, USER_DEFINED, Vocabulary
from tests import models
from tests.plans import make_plan
from tests.tokenizers_reference import CORPUS, random_texts

# As Llama 2, Mistral, InternLM2 and MiniCPM were trained; without the dummy prefix as Gemma.
KNOWN: dict[str, Any] = {
    "model_type": "bpe", "vocab_size": 700, "byte_fallback": True, "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False, "character_coverage": 0.99, "split_digits": True,
    "allow_whitespace_only_pieces": True, "minloglevel": 2,
}  # fmt: skip


@cache
def trained(**changes: Any) -> bytes:
    out = io.BytesIO()
    lines = iter(CORPUS.splitlines() * 3)
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=lines, model_writer=out, **{**KNOWN, **changes})
    return out.getvalue()


def folder(path: Path, raw: bytes, **options: Any) -> Path:
    path.mkdir(exist_ok=True)
    (path / "tokenizer.model").write_bytes(raw)
    (path / "tokenizer_config.json").write_text(json.dumps(options))
    return path


def opened(vocabulary: Vocabulary, path: Path) -> hostlib.SimModel:
    header.write_tokenizer(path, "x", vocabulary)
    return hostlib.SimModel(path, vocab_only=True)


@pytest.fixture(scope="module", params=[True, False], ids=["prefix", "no prefix"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[hostlib.SimModel, sentencepiece.SentencePieceProcessor]]:
    """Tokens that text becomes before it is merged only without the prefix: after one, transformers puts it again."""
    own = {} if request.param else {"user_defined_symbols": "<tool>,\n\n,<用户>"}
    raw = trained(add_dummy_prefix=request.param, **own)
    path = tmp_path_factory.mktemp("model")
    found = read_vocabulary(folder(path, raw), {}, 705)
    with opened(found, path / "t.gguf") as model:
        yield model, sentencepiece.SentencePieceProcessor(model_proto=raw)


def test_the_same_ids_for_random_texts(pair: tuple[hostlib.SimModel, Any]) -> None:
    model, reference = pair
    texts = [text.replace("\0", "") for text in random_texts(21, 10_000, ["<tool>", "<用户>", "\n\n", "▁▁"])]
    for text, expected in zip(texts, reference.encode(texts), strict=True):
        assert model.tokenise(text, parse_special=False) == expected, ascii(text)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")) | st.text(st.sampled_from("ab e\n▁")))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_same_ids_for_any_text(pair: tuple[hostlib.SimModel, Any], text: str) -> None:
    model, reference = pair
    assert model.tokenise(text, parse_special=False) == reference.encode(text)


def test_the_same_text_for_ids(pair: tuple[hostlib.SimModel, Any]) -> None:
    model, reference = pair
    for text in ("The quick brown fox", " jumps\nover 1024 dogs", "naïve 你好", "  x"):
        ids = reference.encode(text)
        assert model.detokenise(ids).decode() == reference.decode(ids) == text


def test_what_the_file_and_the_settings_say(tmp_path: Path) -> None:
    raw = trained(user_defined_symbols="<tool>")
    found = read_vocabulary(folder(tmp_path / "m", raw), {"eos_token_id": [2, 7]}, 702)
    assert (found.model, found.pre, found.add_space_prefix, found.add_bos) == ("llama", None, True, True)
    assert (found.bos, found.eos, found.unknown, found.eos_ids) == (1, 2, 0, (2, 7))
    assert found.types[:4] == (UNKNOWN, CONTROL, CONTROL, USER_DEFINED)
    assert found.tokens[-2:] == ("[PAD700]", "[PAD701]")
    options = {"legacy": False, "add_bos_token": False, "add_prefix_space": False, "chat_template": "{{ x }}",
               "add_eos_token": True, "eos_token": "<tool>"}  # fmt: skip
    found = read_vocabulary(folder(tmp_path / "m", raw, **options), {}, 702)
    assert (found.pre, found.add_space_prefix, found.add_bos) == ("metaspace-first", False, False)
    assert (found.eos, found.chat_template) == (3, "{{ x }}")
    assert "the runtime puts none there" in found.notes[0]


def test_added_tokens(tmp_path: Path) -> None:
    """InternLM2's stand in place of pieces that were kept free for them; others come behind all pieces."""
    free = "[UNUSED_TOKEN_145]"
    raw = trained(user_defined_symbols=free)
    decoder = {
        "0": {"content": "<unk>", "special": True, "normalized": True},
        "3": {"content": "<|im_end|>", "special": True, "normalized": False},
        "701": {"content": "<|tool|>", "special": False, "rstrip": True, "lstrip": True, "normalized": True},
    }
    path = folder(tmp_path / "m", raw, added_tokens_decoder=decoder, eos_token="<|im_end|>")
    (path / "added_tokens.json").write_text(json.dumps({"<pad>": 702, "<late>": 703}))
    found = read_vocabulary(path, {}, 710)
    assert found.tokens[3] == "<|im_end|>" and free not in found.tokens
    assert [found.types[i] for i in (0, 3, 701, 702)] == [UNKNOWN, CONTROL, USER_DEFINED, USER_DEFINED]
    assert (found.lstrip, found.rstrip, found.normalised) == ((701,), (701,), (701, 702, 703))
    assert found.eos_ids == (3,)
    with opened(found, tmp_path / "t.gguf") as model:
        assert model.tokenise("a<|im_end|>")[-1] == 3
        assert 3 not in model.tokenise("a<|im_end|>", parse_special=False)


def test_a_bundle_of_it(tmp_path: Path) -> None:
    source = models.tiny_llama(tmp_path / "m", vocab_size=710, hidden=32, intermediate=32)
    (source / "tokenizer.json").unlink()
    raw = trained()
    (made,) = convert(make_plan(open_source(folder(source, raw)), "tiny", tmp_path, [quant.scheme("fp16")]))
    assert (made / "tokenizer.model").read_bytes() == raw
    reference = sentencepiece.SentencePieceProcessor(model_proto=raw)
    with hostlib.SimModel(made / "model.sim.gguf", vocab_only=True) as model:
        assert model.tokenise("The quick brown fox") == reference.encode("The quick brown fox")


def test_tokenizer_json_is_what_counts_where_both_are(tmp_path: Path) -> None:
    path = models.tiny_llama(tmp_path / "m")
    folder(path, b"nothing")
    assert read_vocabulary(path, {}, 384).model == "gpt2"


def varint(value: int) -> bytes:
    head = bytes([value & 0x7F])
    return head if value < 0x80 else bytes([head[0] | 0x80]) + varint(value >> 7)


def field(number: int, value: bytes | int | float) -> bytes:
    if isinstance(value, float):
        return bytes([number << 3 | 5]) + struct.pack("<f", value)
    if isinstance(value, int):
        return bytes([number << 3, value])
    return bytes([number << 3 | 2]) + varint(len(value)) + value


def piece(text: bytes, score: float = 0.0, kind: int = NORMAL) -> bytes:
    return field(1, field(1, text) + field(2, score) + field(3, kind))


BPE = field(2, field(3, 2))
PLAIN = field(3, field(1, b"identity") + field(4, 0))
GOOD = piece(b"<unk>", 0.0, 2) + piece(b"a", -1.0) + BPE + PLAIN
WRONG: dict[str, tuple[bytes, str]] = {
    "unigram": (piece(b"a") + PLAIN, r"has a SentencePiece model of type 'unigram', and only BPE is supported"),
    "words": (piece(b"a") + field(2, field(3, 3)) + PLAIN, r"of type 'word'"),
    "a map": (GOOD + field(3, field(1, b"nmt_nfkc") + field(2, b"x")), r"a normaliser \('nmt_nfkc'\) that changes"),
    "spaces": (piece(b"a") + BPE, r"a normaliser that removes spaces \(remove_extra_whitespaces\)"),
    "no marks": (GOOD + field(3, field(5, 0)), r"another way with spaces than ▁ before a word"),
    "nothing": (b"", r"is no SentencePiece model \(it has no pieces\)"),
    "a text": (b"IQ== 0\nIg== 1\n", r"is no SentencePiece model \(.*\): download it again, or save the tokenizer"),
    "half": (GOOD[:20], r"is no SentencePiece model \(it ends too early\)"),
    "a number without end": (b"\x08" + b"\xff" * 20, r"the number at byte 11 is too long"),
    "a text that is none": (piece(b"\xff"), r"is no SentencePiece model"),
    "a type that is none": (piece(b"a", 0.0, 9), r"piece 0 has the unknown type 9"),
    "a score that is none": (piece(b"a", float("nan")) + BPE, r"the score of piece 0 is nan"),
    "more pieces than rows": (GOOD + piece(b"b") * 9, r"the tokenizer has 11 tokens, the embedding 10 rows"),
    "a long piece": (GOOD + piece(b"a" * 2000), r"token 2 of the tokenizer has more than 1024 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_refused(tmp_path: Path, case: str) -> None:
    raw, sentence = WRONG[case]
    with pytest.raises(CheckpointError, match=sentence):
        read_vocabulary(folder(tmp_path / "m", raw), {}, 10)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"added_tokens_decoder": {"10": {"content": "x"}}}, r"token 10 \('x'\) is added to .* model has 10 rows"),
        ({"added_tokens_decoder": {"3": {"content": ""}}}, r"token 3 \(''\) is added"),
        ({"added_tokens_decoder": {"3": {"content": "x", "single_word": True}}}, r"match 'x' as a whole word only"),
        ({"added_tokens_decoder": {"9" * 5000: {"content": "x"}}}, r"added_tokens_decoder has '9999.*, which is no"),
        ({"added_tokens_decoder": {"x": {"content": "x"}}}, r"added_tokens_decoder has 'x', which is no token"),
        ({"added_tokens_decoder": {"3": "x"}}, r"added_tokens_decoder has '3', which is no token with an id"),
        ({"added_tokens_decoder": ["x"]}, r"'added_tokens_decoder' is \['x'\], expected an object or null"),
        ({"chat_template": ["x"]}, r"chat_template is neither a text nor texts with names"),
    ],
)
def test_added_tokens_that_are_refused(tmp_path: Path, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        read_vocabulary(folder(tmp_path / "m", GOOD, **options), {}, 10)


def test_an_added_token_without_an_id(tmp_path: Path) -> None:
    path = folder(tmp_path / "m", GOOD)
    (path / "added_tokens.json").write_text('{"<tool>": "3"}')
    with pytest.raises(CheckpointError, match=r"added_tokens.json: '<tool>' has no id: download it again"):
        read_vocabulary(path, {}, 10)


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_a_damaged_file_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    raw = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = folder(tmp_path / "m", bytes(raw[: data.draw(st.integers(0, len(raw)))]))
    try:
        found = read_vocabulary(path, {}, 10)
    except CheckpointError:
        return
    assert len(found.tokens) == 10 and read_model(path / "tokenizer.model").kind == 2
