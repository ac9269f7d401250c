"""tokenizer.json of a bundle that was a GGUF file: tokenizers gives the ids that the runtime gives, for any text."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from rk3588 import bundle, gguf, hostlib, quant
from rkconvert.artifact import header
from rkconvert.build import convert
from rkconvert.sources.opening import open_source
from rkconvert.tokenizers import tokenizer_json
from rkconvert.tokenizers.gguf_metadata import read_vocabulary
from rkconvert.tokenizers.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, Vocabulary
from tests import models, smollm2
from tests import tokenizers_reference as families
from tests.plans import make_plan

FAMILIES: dict[str, Callable[[], families.Family]] = {
    **{pre: functools.partial(families.byte_level, pre) for pre in families.PRE},
    "sentencepiece": families.sentencepiece,
    "sentencepiece, no lead": functools.partial(families.sentencepiece, "none"),
    "sentencepiece, few bytes": functools.partial(families.sentencepiece, bytes_from=0x80),
    "phi-3": families.phi3,
    "gemma": families.gemma,
}
BY_SCORE = [name for name in FAMILIES if name.startswith("sentencepiece")]


@functools.cache
def vocabulary(name: str, by_score: bool = False) -> Vocabulary:
    """A family's, as a GGUF file has it."""
    with tempfile.TemporaryDirectory() as folder:
        path = FAMILIES[name]().write(Path(folder) / "t.gguf", by_score=by_score)
        metadata = gguf.read_file(path).metadata
    found = read_vocabulary({**metadata, "tokenizer.ggml.add_bos_token": False}, path, len(families_tokens(metadata)))
    lstrip, rstrip = (tuple(metadata.get(f"rksim.{side}_token_ids", ())) for side in ("lstrip", "rstrip"))
    return replace(found, lstrip=lstrip, rstrip=rstrip)


def families_tokens(metadata: dict[str, Any]) -> list[str]:
    tokens = metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    return tokens


@functools.cache
def pair(name: str, by_score: bool = False) -> tuple[hostlib.SimModel, Tokenizer]:
    return opened(vocabulary(name, by_score))


def opened(found: Vocabulary) -> tuple[hostlib.SimModel, Tokenizer]:
    """The runtime's tokenizer, and that of the file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.gguf"
        header.write_tokenizer(path, "x", found)
        model = hostlib.SimModel(path, vocab_only=True)
    return model, Tokenizer.from_str(tokenizer_json.files(found, 0)["tokenizer.json"])


CASES = [(name, False) for name in FAMILIES] + [(name, True) for name in BY_SCORE]


@pytest.mark.parametrize(("name", "by_score"), CASES)
def test_the_same_ids_for_random_texts(name: str, by_score: bool) -> None:
    model, reader = pair(name, by_score)
    family = FAMILIES[name]()
    for text in families.random_texts(11, 500, [*family.special, *family.added]):
        assert reader.encode(text, add_special_tokens=False).ids == model.tokenise(text), repr(text)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_same_text_for_ids(name: str) -> None:
    model, reader = pair(name)
    for text in ("The quick brown fox", " jumps\nover 1024 dogs", "naïve 你好"):
        ids = model.tokenise(text)
        shown = model.detokenise(ids).decode(errors="replace")
        assert reader.decode(ids, skip_special_tokens=False) == shown


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(CASES), st.text(max_size=40))
def test_the_same_ids_for_any_text(case: tuple[str, bool], text: str) -> None:
    model, reader = pair(*case)
    assert reader.encode(text, add_special_tokens=False).ids == model.tokenise(text)


@pytest.mark.parametrize("name", ["smollm", "sentencepiece"])
def test_bos_and_the_other_settings(name: str) -> None:
    found = replace(vocabulary(name), bos=1, eos=2, add_bos=True, chat_template="{{ bos_token }}")
    model, reader = opened(found)
    assert reader.encode("One two").ids == model.tokenise("One two", add_bos=True)
    assert reader.encode("One", "two").ids == [1, *model.tokenise("One"), 1, *model.tokenise("two")]
    told = json.loads(tokenizer_json.files(found, 4096)["tokenizer_config.json"])
    assert told["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (told["bos_token"], told["eos_token"]) == (found.tokens[1], found.tokens[2])
    assert (told["add_bos_token"], told["add_eos_token"], told["model_max_length"]) == (True, False, 4096)
    assert told["chat_template"] == "{{ bos_token }}"


def test_smollm2s_bundle() -> None:
    """The real one: its ids, special tokens and template through the files that lie in the bundle."""
    folder = smollm2.bundles(["w8a8"])["w8a8"]
    reader = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert {"<|im_start|>", "<|im_end|>"} <= {
        t.content for t in reader.get_added_tokens_decoder().values() if t.special
    }
    with hostlib.SimModel(folder / "model.sim.gguf", vocab_only=True) as model:
        for text in families.random_texts(3, 1500, ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<repo_name>"]):
            assert reader.encode(text).ids == model.tokenise(text), repr(text)
    listed = {file["path"] for file in bundle.read(folder).manifest["files"]}
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= listed
    told = json.loads((folder / "tokenizer_config.json").read_text())
    assert told["chat_template"] == (folder / "chat_template.jinja").read_text()
    assert (told["bos_token"], told["eos_token"]) == ("<|im_start|>", "<|im_end|>")


def test_rows_without_a_token_are_left_out(tmp_path: Path) -> None:
    """Else they would be tokens that a text can name."""
    folder = tmp_path / "out"
    source = open_source(models.tiny_gguf(tmp_path / "tiny.gguf", vocab_size=900))
    assert "[PAD899]" in source.vocabulary.tokens
    (made,) = convert(make_plan(source, "tiny", folder, [quant.scheme("fp16")]))
    reader = Tokenizer.from_file(str(made / "tokenizer.json"))
    assert reader.token_to_id("[PAD899]") is None
    with hostlib.SimModel(made / "model.sim.gguf", vocab_only=True) as model:
        assert reader.encode("a [PAD899]").ids == model.tokenise("a [PAD899]")


BASE: dict[str, Any] = {
    "model": "gpt2", "pre": "gpt-2", "merges": (), "scores": (), "bos": None, "eos": None, "unknown": None,
    "add_bos": False, "add_space_prefix": False, "eos_ids": (), "chat_template": None,
}  # fmt: skip
OBSTACLES: dict[str, tuple[dict[str, Any], list[tuple[str, int]], bool]] = {
    "two of one spelling": ({}, [("ab", NORMAL), ("ab", CONTROL)], True),
    "a letter for a byte": ({}, [("Ġ", CONTROL)], True),
    "a letter that a text may be": ({}, [("Ġ", USER_DEFINED)], False),
    "a word": ({"ignore_merges": True}, [("Ġword", USER_DEFINED)], True),
    "a word that merges make": ({}, [("Ġword", CONTROL)], False),
    "any other": ({"ignore_merges": True}, [("<｜end▁of▁sentence｜>", CONTROL), ("a", CONTROL)], False),
    "a mark": ({"model": "llama", "pre": None}, [("▁", CONTROL)], True),
    "a byte": ({"model": "llama", "pre": None}, [("<0x0A>", UNKNOWN)], True),
    "a byte that is one": ({"model": "llama", "pre": None}, [("<0x0A>", BYTE), ("▁▁", USER_DEFINED)], False),
}


@pytest.mark.parametrize("case", OBSTACLES)
def test_what_tokenizers_would_read_otherwise_is_not_written(case: str) -> None:
    changes, tokens, found = OBSTACLES[case]
    texts, types = zip(*tokens, strict=True)
    made = Vocabulary(**{**BASE, **changes}, tokens=texts, types=types)
    assert bool(tokenizer_json.obstacle(made)) is found
    assert bool(tokenizer_json.files(made, 0)) is not found


def test_a_bundle_says_why_it_has_none(tmp_path: Path) -> None:
    def change(keys: dict[str, Any]) -> None:
        keys["tokenizer.ggml.tokens"].value[-1] = "<|im_end|>"
        keys["tokenizer.ggml.token_type"].value[-1] = NORMAL

    tiny = models.Tiny(vocab_size=900)
    source = open_source(models.write_gguf(tmp_path / "tiny.gguf", tiny, tiny.weights(), change=change))
    assert source.notes == (
        "no tokenizer.json is written, for it would give other tokens: two of its tokens are '<|im_end|>'",
    )
    (folder,) = convert(make_plan(source, "tiny", tmp_path / "out", [quant.scheme("fp16")]))
    assert not (folder / "tokenizer.json").exists()
    assert bundle.read(folder).manifest["tokenizer"]["no_tokenizer_json"] == "two of its tokens are '<|im_end|>'"
