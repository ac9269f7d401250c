"""Ids and text equal Hugging Face's tokenizers, for SmolLM2's true vocabulary and for a small one of each family."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from rk3588.hostlib import SimModel
from tests.tokenizers_reference import (
    NORMAL,
    PRE,
    UNUSED,
    Family,
    byte_level,
    gemma,
    phi3,
    random_texts,
    sentencepiece,
    smollm2,
    write_vocabulary,
)

COUNT = 100_000
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<repo_name>", "<s>", "</s>", "<unk>", "<|user|>", "<tool>",
           "<|assistant|> ", " <|place|>", "<start_of_turn>", "\n\n\n\n", "▁▁",
           "<tool_call>", "  ", "\n\n", "<0x41>", "[PAD1]", " xyzzy", "qqq", " €"]  # fmt: skip

FAMILIES: dict[str, Callable[[], Family]] = {
    **{pre: partial(byte_level, pre) for pre in PRE},
    "sentencepiece": sentencepiece,
    "phi-3": phi3,
    "gemma": gemma,
}
LONGER = ("phi-3", "gemma", "tekken", "gpt-4o")  # much like another: at length only in the long form
VARIANTS: dict[str, Callable[[], Family]] = {
    "llama-bpe by merges": partial(byte_level, "llama-bpe", ignore_merges=False),
    "qwen2 as it is": partial(byte_level, "qwen2", nfc=False),
    **{lead: partial(sentencepiece, lead) for lead in ("first", "always", "none")},
    "bytes missing": partial(sentencepiece, bytes_from=0x90),
}


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return random_texts(1, COUNT, SPECIAL)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Family, bool], SimModel]]:
    """Each vocabulary written and opened once."""
    models: dict[tuple[str, bool, int], SimModel] = {}

    def get(family: Family, by_score: bool = False) -> SimModel:
        key = (family.name, by_score, id(family))
        if key not in models:
            path = tmp_path_factory.mktemp("vocabulary") / "tokenizer.gguf"
            models[key] = SimModel(family.write(path, by_score=by_score), vocab_only=True)
        return models[key]

    yield get
    for model in models.values():
        model.close()


Opened = Callable[..., SimModel]


def compare(family: Family, model: SimModel, texts: Sequence[str], *, special: bool = True) -> None:
    family.reference.encode_special_tokens = not special
    for at in range(0, len(texts), 5000):
        some = list(texts[at : at + 5000])
        for text, wanted in zip(some, family.reference.encode_batch_fast(some, add_special_tokens=False), strict=True):
            assert model.tokenise(text, parse_special=special) == wanted.ids, ascii(text)


def decoded(family: Family, ids: Sequence[int], *, skip: bool) -> str:
    text: str = family.reference.decode(list(ids), skip_special_tokens=skip)
    return text


@pytest.mark.model
def test_smollm2_equals_the_reference(texts: list[str], opened: Opened) -> None:
    compare(smollm2(), opened(smollm2()), texts)


@pytest.mark.model
def test_smollm2_without_special_tokens(texts: list[str], opened: Opened) -> None:
    compare(smollm2(), opened(smollm2()), texts[:20_000], special=False)
    assert opened(smollm2()).tokenise("<|im_end|>", parse_special=False) != [2]


@pytest.mark.model
def test_smollm2_keeps_digits_apart(opened: Opened) -> None:
    model = opened(smollm2())
    assert [model.detokenise([i]) for i in model.tokenise("in 2024")] == [b"in", b" ", b"2", b"0", b"2", b"4"]
    assert (model.info.bos_id, model.info.eos_id, model.info.add_bos) == (1, 2, 0)


@pytest.mark.parametrize("name", FAMILIES)
def test_family_equals_the_reference(name: str, texts: list[str], opened: Opened) -> None:
    # smollm at length is what SmolLM2's own vocabulary is for
    compare(FAMILIES[name](), opened(FAMILIES[name]()), texts[:20_000] if name in ("smollm", *LONGER) else texts)


@pytest.mark.slow
@pytest.mark.parametrize("name", LONGER)
def test_family_equals_the_reference_at_length(name: str, texts: list[str], opened: Opened) -> None:
    compare(FAMILIES[name](), opened(FAMILIES[name]()), texts)


@pytest.mark.parametrize("name", [*FAMILIES, *VARIANTS])
def test_without_special_tokens(name: str, texts: list[str], opened: Opened) -> None:
    family = (FAMILIES | VARIANTS)[name]()
    compare(family, opened(family), texts[:10_000], special=False)


@pytest.mark.parametrize("name", VARIANTS)
def test_variant_equals_the_reference(name: str, texts: list[str], opened: Opened) -> None:
    compare(VARIANTS[name](), opened(VARIANTS[name]()), texts[:20_000])


def test_scores_stand_for_the_merges(texts: list[str], opened: Opened) -> None:
    compare(sentencepiece(), opened(sentencepiece(), True), texts[:20_000])


@given(st.text() | st.lists(st.sampled_from([*SPECIAL, " ", "a", "1", "'S", "é", "e\u0301"])).map("".join))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_hypothesis_thinks_of(opened: Opened, text: str) -> None:
    for make in (FAMILIES | VARIANTS).values():
        compare(make(), opened(make()), [text])


@pytest.mark.parametrize("name", [*FAMILIES, *VARIANTS])
@pytest.mark.parametrize("skip", [False, True])
def test_decoding_equals_the_reference(name: str, skip: bool, texts: list[str], opened: Opened) -> None:
    family = (FAMILIES | VARIANTS)[name]()
    model = opened(family)
    compared = 0
    for text in texts[:3000]:
        ids = model.tokenise(text)
        raw = model.detokenise(ids, skip_special=skip)
        # The reference joins bytes before it reads them as UTF-8, ours are the caller's to read: broken ones differ.
        if b"\xef\xbf\xbd" not in raw and (got := raw.decode("utf-8", "replace")).isprintable() | ("\ufffd" not in got):
            assert got == decoded(family, ids, skip=skip), ascii(text)
            compared += 1
    assert compared > 2000


@pytest.mark.parametrize("name", [*FAMILIES, *VARIANTS])
def test_a_stream_split_anywhere_is_the_same_text(name: str, texts: list[str], opened: Opened) -> None:
    family = (FAMILIES | VARIANTS)[name]()
    model = opened(family)
    (guard,) = model.tokenise("x")[-1:]  # keeps a first space from being dropped

    def tail(ids: list[int]) -> bytes:
        return model.detokenise([guard, *ids]).removeprefix(b"x")

    for text in texts[3000:4000]:
        ids = model.tokenise(text)
        pieces = b"".join(tail([i]) for i in ids)
        assert pieces == tail(ids)
        cut = len(text) * 7 % (len(ids) + 1)
        assert model.detokenise(ids[:cut]) + (tail if ids[:cut] else model.detokenise)(ids[cut:]) == model.detokenise(
            ids
        )


@pytest.mark.parametrize("name", ["gpt-2", "smollm", "llama-bpe", "sentencepiece", "first", "none"])
@given(text=st.text())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_text_comes_back(name: str, opened: Opened, text: str) -> None:
    family = (FAMILIES | VARIANTS)[name]()
    if family.model == "llama":  # a mark is a space, a space may stand before each part, and Metaspace drops one
        assume("▁" not in text and not any(added in text for added in family.added))
        assume(name != "first" or not text.startswith(" "))
    model = opened(family)
    assert model.detokenise(model.tokenise(text, parse_special=False)) == text.encode()


@given(st.binary(max_size=40) | st.text(max_size=9).map(lambda t: t.encode()[:-1] + b"\xed\xa0\x80\xf4\x90\xff"))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_invalid_utf8_reads_as_python_reads_it(opened: Opened, raw: bytes) -> None:
    for name in ("gpt-2", "qwen2", "sentencepiece"):
        model = opened(FAMILIES[name]())
        assert model.tokenise(raw) == model.tokenise(raw.decode("utf-8", "replace"))


def test_lone_surrogates_are_replaced(opened: Opened) -> None:
    model = opened(byte_level("gpt-2"))
    assert model.tokenise("a\ud800b") == model.tokenise("a\ufffd\ufffd\ufffdb")


def test_bos_and_ids_that_do_not_exist(opened: Opened) -> None:
    model = opened(sentencepiece())
    ids = model.tokenise("a", add_bos=True)
    assert ids == [1, *model.tokenise("a")]
    assert model.tokenise("", add_bos=True) == [1]
    assert model.detokenise([-1, *ids, model.info.n_vocab, 2**31 - 1], skip_special=True) == b"a"
    assert model.detokenise([0, *ids, 2]) == b"<unk><s> a</s>"


def test_padding_stands_for_nothing(tmp_path: Path) -> None:
    tokens, types = ["a", "b", "[PAD2]", "x", "aa"], [NORMAL, NORMAL, UNUSED, UNUSED, NORMAL]
    path = write_vocabulary(tmp_path / "t.gguf", tokens, pre="gpt-2", types=types, merges=["a a"])
    with SimModel(path, vocab_only=True) as model:
        assert model.tokenise("abx[PAD2]") == [0, 1]
        assert model.detokenise([0, 2, 3, 1]) == b"ab"
