"""The tokenizer of a GGUF file that leaves things out, or says them wrong, as many do: what llama.cpp makes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, processors

from rk3588.errors import CheckpointError
from rk3588.gguf import read_file
from rkconvert.tokenizers import huggingface as vocabulary_hf
from rkconvert.tokenizers.gguf_metadata import read_vocabulary
from rkconvert.tokenizers.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, Vocabulary
from tests import tokenizers_reference as families

WORDS = ["a", "b", "c", "ab", "<", ">"]
GPT2: dict[str, Any] = {"model": "gpt2", "pre": "gpt-2", "tokens": WORDS, "merges": ["a b"]}
BYTES = [f"<0x{b:02X}>" for b in range(256)]
LLAMA: dict[str, Any] = {
    "model": "llama",
    "tokens": ["<unk>", "<s>", "</s>", *BYTES, *WORDS],
    "scores": [-float(i) for i in range(3 + 256 + len(WORDS))],
}


def read(
    base: dict[str, Any],
    *more: str,
    name: str = "tiny",
    architecture: str = "llama",
    types: list[int] | None = None,
    **keys: Any,
) -> Vocabulary:
    """``more``: tokens behind the others; their ``types``, the others' are NORMAL; a key of None is left out."""
    keys = {"tokens": [*base["tokens"], *more], **keys}
    if types is not None:
        keys["token_type"] = [NORMAL] * len(base["tokens"]) + types
    if "scores" in base and more:
        keys["scores"] = [*base["scores"], *(-1000.0 for _ in more)]
    found = {f"tokenizer.ggml.{k}": v for k, v in {**base, **keys}.items() if v is not None}
    return read_vocabulary(
        {"general.name": name, "general.architecture": architecture, **found},
        Path("tiny.gguf"),
        len(keys["tokens"]) + 2,
    )


@pytest.mark.parametrize("pre", ["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"])
@pytest.mark.parametrize(("said", "adds"), [(None, True), (True, True), (False, False)])
def test_llama_3_begins_with_bos_unless_the_file_says_otherwise(pre: str, said: bool | None, adds: bool) -> None:
    found = read(GPT2, "<|begin_of_text|>", pre=pre, bos_token_id=6, add_bos_token=said)
    assert (found.pre, found.add_bos) == ("llama-bpe", adds)


@pytest.mark.parametrize("pre", [None, "default"])
def test_llama_3_is_known_without_a_pre_tokeniser(pre: str | None) -> None:
    found = read(GPT2, "<|begin_of_text|>", types=[CONTROL], pre=pre, bos_token_id=6)
    assert (found.pre, found.add_bos) == ("llama-bpe", True)
    assert "names no pre-tokeniser" in found.notes[0]


@pytest.mark.parametrize(
    ("name", "pre"),
    [
        ("refact", "smollm"),
        ("starcoder", "smollm"),
        ("phi-2", "gpt-2"),
        ("megrez", "qwen2"),
        ("deepseek-r1-qwen", "qwen2"),
        ("gpt-4o", "gpt-4o"),
        ("smaug-bpe", "llama-bpe"),
    ],
)
def test_other_names_of_pre_tokenisers(name: str, pre: str) -> None:
    found = read(GPT2, pre=name)
    assert (found.pre, found.add_bos, found.add_space_prefix) == (pre, False, False)


@pytest.mark.parametrize(
    ("pre", "nfc", "whole"),
    [("llama-bpe", False, True), ("smaug-bpe", False, False), ("tekken", False, True), ("gpt-4o", False, False),
     ("deepseek-r1-qwen", True, False), ("phi-2", False, False)],
)  # fmt: skip
def test_what_a_pre_tokeniser_says_besides(pre: str, nfc: bool, whole: bool) -> None:
    """SmolLM3's files name smaug-bpe, which is Llama 3's without BOS and without words taken whole."""
    found = read(GPT2, pre=pre, bos_token_id=0)
    assert (found.nfc, found.ignore_merges, found.add_bos) == (nfc, whole, whole)


@pytest.mark.parametrize("pre", [None, "default"])
@pytest.mark.parametrize(("architecture", "expected"), [("qwen2", "qwen2"), ("qwen3", "qwen2"), ("phi2", "gpt-2")])
def test_a_file_from_before_pre_tokenisers_had_names(pre: str | None, architecture: str, expected: str) -> None:
    found = read(GPT2, pre=pre, architecture=architecture, types=[])
    assert found.pre == expected
    assert found.notes[0] == (f"the file names no pre-tokeniser; {expected} is used, as in every {architecture} model")


def test_sentencepiece_without_a_word_about_it() -> None:
    found = read(LLAMA)
    assert (found.add_bos, found.add_space_prefix, found.unknown, found.bos, found.eos) == (True, True, 0, 1, 2)
    assert found.eos_ids == (2,)
    assert found.types[:4] == (UNKNOWN, CONTROL, CONTROL, BYTE)
    assert found.types[259:265] == (NORMAL,) * 6
    found = read(LLAMA, add_bos_token=False, add_space_prefix=False, eos_token_id=1, bos_token_id=2)
    assert (found.add_bos, found.add_space_prefix, found.bos, found.eos) == (False, False, 2, 1)


ENDS = [
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>", "<|end|>", "<end_of_turn>", "<EOT>",
    "_<EOT>", "</s>", "<eos>", "[EOS]", "<end_of_utterance>", "<|fim_pad|>", "<reponame>", "<|file_sep|>",
]  # fmt: skip


@pytest.mark.parametrize("kind", [CONTROL, USER_DEFINED, NORMAL])
@pytest.mark.parametrize("text", ENDS)
def test_a_text_that_ends_an_answer_ends_it(text: str, kind: int) -> None:
    """Whatever its type is said to be, and whatever EOS the file names."""
    found = read(GPT2, "<|startoftext|>", text, types=[CONTROL, kind], eos_token_id=6)
    assert found.eos_ids == (6, 7)
    assert found.types[6:8] == (CONTROL, CONTROL)


def test_ends_by_their_keys() -> None:
    found = read(GPT2, eos_token_id=0, eot_token_id=1, eom_token_id=2, fim_sep_token_id=3)
    assert found.eos_ids == (0, 1, 2, 3)
    assert found.notes == (
        "the file has no token types: those that look special, and those it names, were taken for special",
    )


def test_one_token_of_a_gap_to_fill() -> None:
    """The named one, else the first that is there; those around the gap are special and end nothing."""
    found = read(GPT2, "<PAD>", "<|fim_pad|>", "<fim_prefix>", types=[NORMAL] * 3, eos_token_id=0)
    assert found.eos_ids == (0, 7)
    assert found.types[6:9] == (NORMAL, CONTROL, CONTROL)
    found = read(GPT2, "<PAD>", "<|fim_pad|>", types=[NORMAL] * 2, eos_token_id=0, fim_pad_token_id=6)
    assert found.eos_ids == (0, 6)


def test_two_families_in_which_a_known_end_is_none() -> None:
    found = read(GPT2, "<|end|>", "<|return|>", "<|call|>", types=[CONTROL] * 3)
    assert found.eos_ids == (7, 8)
    assert found.types[6] == USER_DEFINED
    found = read(GPT2, "</s>", "<|tool_response>", types=[CONTROL] * 2)
    assert found.eos_ids == (7,)
    assert found.types[6] == NORMAL


def test_without_types_what_looks_special_is() -> None:
    """A merge that makes such a text says that it is none."""
    more = ["<|begin|>", "<tool_call>", "[INST]", "<a", "<a>", "\N{PARTY POPPER}", "xyzzy"]
    found = read(GPT2, *more, merges=["a b", "< a", "<a >"], bos_token_id=0)
    assert [found.types[6 + i] for i in range(7)] == [CONTROL, CONTROL, CONTROL, NORMAL, NORMAL, NORMAL, NORMAL]
    assert found.types[0] == CONTROL
    assert "no token types" in found.notes[0]


def test_what_cannot_be_done_is_noted() -> None:
    (told,) = read(GPT2, types=[], eos_token_id=1, add_eos_token=True).notes
    assert "add_eos_token" in told
    (told,) = read(GPT2, types=[]).notes
    assert told == "the file names no token that ends an answer"


def test_a_chat_template_that_is_none() -> None:
    keys = {f"tokenizer.ggml.{key}": value for key, value in GPT2.items()}
    with pytest.raises(CheckpointError, match=r"tokenizer.chat_template is \[1\], expected a text"):
        read_vocabulary({**keys, "tokenizer.chat_template": [1]}, Path("tiny.gguf"), 8)


def test_phi_3_takes_spaces_along() -> None:
    more = ["<|user|>", "<|end|>", "<|endoftext|>"]
    assert read(LLAMA, *more, types=[CONTROL] * 3).rstrip == ()
    assert read(LLAMA, *more, types=[CONTROL] * 3, name="Phi-3-mini llamafied").rstrip == (2, 265, 266)


WRONG: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "BOS that is not named": (GPT2, {"pre": "llama-bpe"}, r"bos_token_id does not say which token that is"),
    "BOS that is asked for": (GPT2, {"add_bos_token": True}, r"bos_token_id does not say which token that is"),
    "BOS that is none": (GPT2, {"bos_token_id": 99}, r"the BOS token has id 99, the tokenizer ends at 7"),
    "a flag that is none": (LLAMA, {"add_space_prefix": 1}, r"add_space_prefix is 1, expected true or false"),
    "a type that is none": (GPT2, {"types": [], "token_type": [1, 1, 0, 1, 1, 1]}, r"token 2 .* the unknown type 0"),
    "placeholders": (LLAMA, {"scores": [-1000.0] * 265}, r"all tokens have the score -1000 and there are no merges"),
    "a score that is none": (LLAMA, {"scores": [float("nan")] * 265}, r"the score of token 0 is nan"),
    "a token without end": (
        {**LLAMA, "tokens": [*LLAMA["tokens"][:-1], "a" * 1_000_000]}, {},
        r"token 264 of the tokenizer has more than 1024 bytes",
    ),
    "a merge of nothing": (GPT2, {"merges": ["a b", "b c"]}, r"merge 1 of the tokenizer is .b c., which makes no"),
    "a merge of one": (GPT2, {"merges": ["ab"]}, r"merge 0 of the tokenizer is 'ab', which makes no token"),
    "a pre-tokeniser": (GPT2, {"pre": "qwen35"}, r"pre-tokeniser 'qwen35' is not supported"),
    "none": (GPT2, {"pre": None}, r"pre-tokeniser None is not supported"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_refused(case: str) -> None:
    base, keys, sentence = WRONG[case]
    keys = {k: v for k, v in keys.items() if k != "types"}
    with pytest.raises(CheckpointError, match=sentence):
        read(base, **keys)


@pytest.mark.parametrize("name", ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken", "gpt-4o", "sentencepiece"])
@pytest.mark.parametrize("adds", [True, False])
def test_the_same_tokenizer_from_a_folder_and_a_file(tmp_path: Path, name: str, adds: bool) -> None:
    """The folder says it by its post-processor, the file by a key, or by nothing where its kind implies it."""
    family = families.sentencepiece() if name == "sentencepiece" else families.byte_level(name)
    reference = Tokenizer.from_str(family.reference.to_str())
    bos = family.special[1]
    if adds:
        begun = [(bos, reference.token_to_id(bos))]
        reference.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=begun)
    else:
        reference.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    reference.save(str(tmp_path / "tokenizer.json"))
    settings = {"bos_token_id": reference.token_to_id(bos), "eos_token_id": reference.token_to_id(family.special[2])}
    size = reference.get_vocab_size() + 5
    folder = vocabulary_hf.read_vocabulary(tmp_path, settings, size)

    metadata = read_file(family.write(tmp_path / "t.gguf")).metadata
    implied = adds == (name in ("llama-bpe", "tekken", "sentencepiece"))
    keys = {f"tokenizer.ggml.{key}": value for key, value in settings.items()}
    keys |= {} if implied else {"tokenizer.ggml.add_bos_token": adds}
    file = read_vocabulary({**metadata, **keys}, tmp_path, size)
    # llama.cpp ends answers by their texts, too; scores are for readers that have no merges.
    assert replace(file, eos_ids=folder.eos_ids, scores=folder.scores) == folder
    assert set(folder.eos_ids) <= set(file.eos_ids)
