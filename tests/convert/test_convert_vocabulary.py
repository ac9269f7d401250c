"""Tokenizers through the converter: what the runtime makes of a bundle equals Hugging Face's tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from rk3588 import hostlib, quant
from rk3588.errors import CheckpointError
from rkconvert.build import convert
from rkconvert.sources.opening import open_source
from rkconvert.tokenizers.huggingface import read_vocabulary
from rkconvert.tokenizers.vocabulary import Vocabulary
from tests import models
from tests import tokenizers_reference as families
from tests.plans import make_plan

FAMILIES: dict[str, Callable[[], families.Family]] = {
    **{pre: lambda pre=pre: families.byte_level(pre) for pre in families.PRE},  # type: ignore[misc]
    **{
        f"sentencepiece {lead}": lambda lead=lead: families.sentencepiece(lead)  # type: ignore[misc]
        for lead in ("normaliser", "first", "always", "none")
    },
    **{
        f"normalised {pre}": lambda pre=pre: families.normalised(families.byte_level(pre))  # type: ignore[misc]
        for pre in ("gpt-2", "llama-bpe", "qwen2")
    },
    **{
        f"normalised sentencepiece {lead}": lambda lead=lead: families.normalised(families.sentencepiece(lead))  # type: ignore[misc]
        for lead in ("normaliser", "first", "always", "none")
    },
    "llama-bpe by merges": lambda: families.byte_level("llama-bpe", ignore_merges=False),
    "llama-bpe, composed": lambda: families.byte_level("llama-bpe", nfc=True),
    "qwen2 as it is": lambda: families.byte_level("qwen2", nfc=False),
    "phi-2": families.phi2,
    "phi-3": families.phi3,
    "gemma": families.gemma,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_runtime_gives_the_same_ids(tmp_path: Path, name: str) -> None:
    family = FAMILIES[name]()
    rows = family.reference.get_vocab_size() + 3
    source = models.tiny_llama(tmp_path / "m", vocab_size=rows, hidden=32, intermediate=32)
    family.reference.save(str(source / "tokenizer.json"))
    found = open_source(source)
    assert found.vocabulary.pre == family.pre
    assert found.notes == ()
    (folder,) = convert(make_plan(found, "tiny", tmp_path, [quant.scheme("fp16")]))
    texts = families.random_texts(7, 1500, [*family.special, *family.added])
    with hostlib.SimModel(folder / "model.sim.gguf", vocab_only=True) as model:
        assert model.info.n_vocab == rows
        for text in texts:
            expected = family.reference.encode(text, add_special_tokens=False).ids
            assert model.tokenise(text) == expected, repr(text)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return models.tiny_llama(tmp_path / "m")


def vocabulary(model: Path, rows: int = 384, **settings: Any) -> Vocabulary:
    return read_vocabulary(model, {"bos_token_id": 1, "eos_token_id": 2, **settings}, rows)


def edit(path: Path, **changes: Any) -> None:
    value = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in value.items() if v is not None}))


BERT = {"type": "BertNormalizer"}
DIGITS = {"type": "Digits", "individual_digits": True}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
SPLIT = {"type": "Split", "pattern": {"Regex": r"\d"}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"normalizer": BERT}, r"normaliser \(BertNormalizer\) and pre-tokeniser \(Digits \+ ByteLevel\) are none"),
        ({"pre_tokenizer": None}, r"pre-tokeniser \(none\) are none that the runtime knows"),
        ({"pre_tokenizer": {**BYTES, "add_prefix_space": True}}, r"pre-tokeniser \(ByteLevel\) are none"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [DIGITS, DIGITS, BYTES]}}, r"are none"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLIT, {**BYTES, "use_regex": False}]}}, r"are none"),
        ({"added_tokens": [{"id": 1, "content": "x", "special": True, "single_word": True}]}, r"match 'x' as a whole"),
        ({"added_tokens": [{"id": 384, "content": "x", "special": True}]}, r"has 385 tokens, the embedding 384 rows"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b c"]}}, r"a merge has a space inside"),
        ({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["a b"]}}, r"'a b', which makes no token"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}, r"has no merges, which ByteLevel BPE needs"),
        ({"model": {"type": "BPE", "vocab": {"a": 0.0}, "merges": []}}, r"token 'a' of the tokenizer has no id"),
        ({"added_tokens": [{"id": "1", "content": "x", "special": True}]}, r"\{'id': '1', .* is no added token"),
        ({"post_processor": {"type": "TemplateProcessing", "single": []}}, r"is not of the form that tokenizers"),
    ],
)  # fmt: skip
def test_what_the_runtime_cannot_do_is_refused(model: Path, changes: dict[str, Any], sentence: str) -> None:
    edit(model / "tokenizer.json", **changes)
    with pytest.raises(CheckpointError, match=sentence):
        vocabulary(model)


def test_text_that_is_not_unicode(model: Path) -> None:
    edit(model / "tokenizer_config.json", chat_template="\ud800")
    with pytest.raises(CheckpointError, match=r"the chat template is not valid Unicode"):
        vocabulary(model)
    edit(model / "tokenizer_config.json", chat_template=None)
    whole = json.loads((model / "tokenizer.json").read_text())
    whole["model"]["vocab"]["\ud800"] = whole["model"]["vocab"].pop("a")
    edit(model / "tokenizer.json", **whole)
    with pytest.raises(CheckpointError, match=r"token \d+ of the tokenizer is not valid Unicode"):
        vocabulary(model)


@pytest.mark.parametrize(
    ("generation", "settings", "expected"),
    [
        ({"eos_token_id": [2, 0]}, {}, (0, 2)),
        ({"eos_token_id": 0}, {}, (0, 2)),  # with the tokenizer's own
        ({}, {"eos_token_id": [5, 2]}, (2, 5)),
        ({"eos_token_id": [2, 100000, -1, True]}, {}, (2,)),
        ({}, {"eos_token_id": None}, (2,)),
    ],
)
def test_what_ends_an_answer(
    model: Path, generation: dict[str, Any], settings: dict[str, Any], expected: tuple[int, ...]
) -> None:
    (model / "generation_config.json").write_text(json.dumps(generation))
    assert vocabulary(model, **settings).eos_ids == expected


@pytest.mark.parametrize(
    ("special", "template", "expected"),
    [
        (True, "{{ message.content + '<end_of_turn>' }}", (2, 384)),  # Gemma 1.1's folder lists only <eos>
        (True, "{{ message.content }}", (2,)),
        (False, "{{ message.content + '<end_of_turn>' }}", (2,)),
        (True, "{{ message.content + '<end_of_turn><|return|>' }}", (2,)),
        (True, None, (2,)),
    ],
)
def test_a_turns_end_ends_an_answer(
    model: Path, special: bool, template: str | None, expected: tuple[int, ...]
) -> None:
    whole = json.loads((model / "tokenizer.json").read_text())
    more = {"id": 384, "content": "<end_of_turn>", "special": special, "normalized": False}
    edit(model / "tokenizer.json", added_tokens=[*whole["added_tokens"], more])
    edit(model / "tokenizer_config.json", chat_template=template)
    assert vocabulary(model, rows=385).eos_ids == expected


TEMPLATE = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "a"}}, {"Sequence": {"id": "A"}}]}
PLAIN = {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A"}}]}


@pytest.mark.parametrize(
    ("processor", "chosen", "expected"),
    [
        (None, None, False),
        (TEMPLATE, None, True),
        ({"type": "Sequence", "processors": [BYTES, TEMPLATE]}, None, True),
        (PLAIN, None, False),
        (TEMPLATE, False, False),
        (PLAIN, True, True),
    ],
)
def test_whether_a_prompt_begins_with_bos(
    model: Path, processor: dict[str, Any] | None, chosen: bool | None, expected: bool
) -> None:
    edit(model / "tokenizer.json", post_processor=processor)
    edit(model / "tokenizer_config.json", add_bos_token=chosen)
    assert vocabulary(model).add_bos is expected


@pytest.mark.parametrize("chosen", [True, None, False])
def test_eos_behind_a_prompt_is_noted(model: Path, chosen: bool | None) -> None:
    behind = [{"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "a"}}]
    edit(model / "tokenizer.json", post_processor={"type": "TemplateProcessing", "single": behind})
    edit(model / "tokenizer_config.json", add_eos_token=chosen)
    told = "the tokenizer asks for EOS behind every prompt, and the runtime puts none there"
    assert vocabulary(model).notes == (() if chosen is False else (told,))


@pytest.mark.parametrize("value", [5, ["x"], [{"name": "default", "template": 5}], [{"name": "default"}], {"a": 1}])
def test_a_chat_template_that_is_none(model: Path, value: Any) -> None:
    edit(model / "tokenizer_config.json", chat_template=value)
    with pytest.raises(CheckpointError, match=r"tokenizer_config.json: chat_template is neither a text nor texts with"):
        vocabulary(model)


def test_chat_templates_without_a_default(model: Path) -> None:
    templates = [{"name": "rag", "template": "R"}, {"name": "b", "template": ""}]
    edit(model / "tokenizer_config.json", chat_template=templates)
    found = vocabulary(model)
    assert found.chat_template is None
    assert found.notes == ("none of the chat templates (b, rag) is the default: the bundle has none",)


def test_where_the_chat_template_comes_from(model: Path) -> None:
    """A file of its own wins; of several by name, the default; none is no error."""
    edit(
        model / "tokenizer_config.json",
        chat_template=[{"name": "rag", "template": "R"}, {"name": "default", "template": "D"}],
    )
    assert vocabulary(model).chat_template == "D"
    edit(model / "tokenizer_config.json", chat_template={"rag": "R", "default": "E"})
    assert vocabulary(model).chat_template == "E"
    (model / "chat_template.jinja").write_text("J")
    assert vocabulary(model).chat_template == "J"
    (model / "chat_template.jinja").unlink()
    edit(model / "tokenizer_config.json", chat_template=None)
    assert vocabulary(model).chat_template is None


def test_special_tokens_may_be_objects(model: Path) -> None:
    edit(model / "tokenizer_config.json", bos_token={"content": "<|endoftext|>", "lstrip": False}, eos_token=None)
    found = vocabulary(model, eos_token_id=[1])
    assert (found.bos, found.eos) == (0, 1)


def test_differences_are_noted(model: Path) -> None:
    families.sentencepiece().reference.save(str(model / "tokenizer.json"))
    whole = json.loads((model / "tokenizer.json").read_text())
    whole["model"]["ignore_merges"] = True
    edit(model / "tokenizer.json", **whole)
    (words,) = read_vocabulary(model, {}, 2000).notes
    assert "by merges only" in words


def test_words_may_be_what_an_expression_does_not_remove(model: Path) -> None:
    """Phi-4-mini's way to say it."""
    family = families.byte_level("gpt-4o")
    whole = json.loads(family.reference.to_str())
    whole["pre_tokenizer"]["pretokenizers"][0] |= {"behavior": "Removed", "invert": True}
    reference = Tokenizer.from_str(json.dumps(whole))
    for text in families.random_texts(5, 300, family.special):
        expected = family.reference.encode(text).ids
        assert reference.encode(text).ids == expected
    (model / "tokenizer.json").write_text(json.dumps(whole))
    assert read_vocabulary(model, {}, 2000).pre == "gpt-4o"
